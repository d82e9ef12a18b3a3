"""Every error that ouro-edge raises on purpose. Knows nothing else of the package.

    OuroEdgeError
    ├── ConfigError          config.json (or its GGUF equivalent) is missing, incomplete or not a model that we run
    ├── CheckpointError      the weights or the tokenizer of a source cannot be read as the config promises
    ├── BundleError          an exported directory is incomplete, damaged or of another version
    ├── ExportError          the destination cannot be written
    ├── HubError             a model cannot be fetched or found
    ├── VerificationError    a bundle disagrees with the reference
    ├── Cancelled            a Cancel was fired; `generate` reports it as Done, `forward` raises it
    └── RequestError         a call asks for what cannot be done
        ├── NoGateError          an exit threshold on a model without an exit gate
        ├── NoTokenizerError     text asked of a model without a tokenizer
        ├── TemplateError        a chat template is missing or refuses the messages
        └── ContextOverflowError the prompt or the answer does not fit the context or the memory

A message says what was found, what was wanted and what to do next, on one line.
"""


class OuroEdgeError(Exception):
    """Base of all errors of this package; the command line prints its text and exits with 1."""


_JOINERS = "\u200c\u200d"  # not printable to Python, but parts of words and of emoji


def one_line(text: object, limit: int = 1000) -> str:
    """Untrusted text as one line of at most `limit` printable characters; "…" marks what was cut off."""
    line = " ".join("".join(c for c in str(text) if c.isprintable() or c.isspace() or c in _JOINERS).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


class ConfigError(OuroEdgeError):
    """A model configuration is missing, incomplete or of an unsupported kind."""


class CheckpointError(OuroEdgeError):
    """The tensors or the tokenizer of a checkpoint cannot be read as promised."""


class BundleError(OuroEdgeError):
    """An exported model is incomplete, damaged or of an unknown version."""


class ExportError(OuroEdgeError):
    """The destination of an export cannot be written."""


class HubError(OuroEdgeError):
    """A model name cannot be turned into files on this machine."""


class VerificationError(OuroEdgeError):
    """A bundle disagrees with the reference beyond its tolerance."""


class Cancelled(OuroEdgeError):
    """A Cancel was fired while this was computed."""


class RequestError(OuroEdgeError, ValueError):
    """A call asks for something that the model or its arguments do not allow."""


class NoGateError(RequestError):
    """An exit threshold was asked of a model without an exit gate."""


class NoTokenizerError(RequestError):
    """Text was given to, or asked of, a model without a tokenizer."""


class TemplateError(RequestError):
    """A chat template is missing, fails, or refuses the messages."""


class ContextOverflowError(RequestError):
    """More positions were asked for than the model's context holds."""
