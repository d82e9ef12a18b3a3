"""From logits to a token: samplers, log-probabilities, constraints, generation_config.json."""

__all__ = ["constraint", "generation_config", "sampler", "top_logprobs"]
