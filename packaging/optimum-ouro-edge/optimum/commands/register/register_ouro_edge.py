"""The commands of ouro-edge for optimum-cli, which imports every module in optimum/commands/register/."""

from ouro_edge.integrations.optimum_command import REGISTER_COMMANDS

__all__ = ["REGISTER_COMMANDS"]
