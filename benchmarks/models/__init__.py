"""`python -m benchmarks.models`: whole language models, from tokens to logits and to gradients."""
