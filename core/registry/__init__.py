"""Records of participants, models, meters, PANs and appointments: how each is changed, and what takes effect when."""
