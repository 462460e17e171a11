"""Which nodes there are, which shard is whose, who has failed, and what operators see of it."""
