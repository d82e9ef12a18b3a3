"""From an exported model to tokens. Must not import the exporter."""
