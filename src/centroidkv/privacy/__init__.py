"""What is held about a tenant, a question or a passage: finding it, telling it, forgetting it."""
