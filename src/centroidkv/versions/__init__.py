"""Plan versions of a store: fitted, in force or on trial, what is kept for them, what they cost."""
