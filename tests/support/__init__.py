"""What several tests share: small checkpoints, references from transformers, and worlds to run on."""
