"""From logits to a token: samplers, log-probabilities, constraints, generation_config.json."""
