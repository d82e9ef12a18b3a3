"""The exceptions of ouro-edge. Must not import any other module of the package.

    OuroEdgeError
    ├── ConfigError          config.json (or its GGUF equivalent) is missing, incomplete or not supported
    ├── CheckpointError      the weights or the tokenizer of a source do not match its config or cannot be read
    ├── BundleError          an exported model is incomplete, damaged or of another version
    ├── ExportError          the destination cannot be written
    ├── HubError             a model cannot be found or downloaded
    ├── VerificationError    an exported model differs from the reference
    ├── Cancelled            a Cancel was fired; `generate` reports this in Done, `forward` raises it
    └── RequestError         a call has invalid arguments or is not possible
        ├── NoGateError          an exit threshold on a model without an exit gate
        ├── NoTokenizerError     text input or output of a model without a tokenizer
        ├── TemplateError        a chat template is missing or rejects the messages
        └── ContextOverflowError a prompt or an answer does not fit the context or the memory

A message states what was found, what was expected and what to do next, on one line.
"""


class OuroEdgeError(Exception):
    """Base class of all errors of this package; the command line prints the message and exits with status 1."""


_JOINERS = "\u200c\u200d"  # not printable to Python, but parts of words and of emoji


def one_line(text: object, limit: int = 1000) -> str:
    """Untrusted text as one line of at most `limit` printable characters; "…" marks what was cut off."""
    line = " ".join("".join(c for c in str(text) if c.isprintable() or c.isspace() or c in _JOINERS).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class ConfigError(OuroEdgeError):
    """A model configuration is missing, incomplete or of an unsupported kind."""


class CheckpointError(OuroEdgeError):
    """The tensors or the tokenizer of a checkpoint do not match its config or cannot be read."""


class BundleError(OuroEdgeError):
    """An exported model is incomplete, damaged or of an unknown version."""


class ExportError(OuroEdgeError):
    """The destination of an export cannot be written."""


def not_text(name: str, problem: UnicodeDecodeError) -> str:
    """A message about input that is not text in the expected encoding."""
    return f"{name} is not valid {problem.encoding} text: {problem.reason}; convert it to {problem.encoding}"


class HubError(OuroEdgeError):
    """A model cannot be found or downloaded."""


class VerificationError(OuroEdgeError):
    """An exported model differs from the reference by more than the tolerance."""


class Cancelled(OuroEdgeError):
    """A Cancel was fired during the computation."""


class RequestError(OuroEdgeError, ValueError):
    """A call has invalid arguments, or the model does not support it."""


class NoGateError(RequestError):
    """An exit threshold was set for a model without an exit gate."""


class NoTokenizerError(RequestError):
    """Text input or output was requested from a model without a tokenizer."""


class TemplateError(RequestError):
    """A chat template is missing, fails, or rejects the messages."""


class ContextOverflowError(RequestError):
    """A prompt or an answer does not fit the context or the memory."""
