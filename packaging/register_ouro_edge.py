"""Installed as optimum/commands/register/register_ouro_edge.py, where optimum-cli finds our commands."""

from ouro_edge.integrations.optimum_command import REGISTER_COMMANDS

__all__ = ["REGISTER_COMMANDS"]
