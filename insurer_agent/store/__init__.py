"""The agent's database: one PostgreSQL, in which everything personal is encrypted or a keyed HMAC."""
