"""Those who look on: metrics, spans, request logs, health. None of them sees a text of a user's."""
