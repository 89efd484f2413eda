"""Model and configuration classes that NeMo does not have."""
