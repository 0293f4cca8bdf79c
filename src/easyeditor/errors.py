"""Every error EasyEdit raises on purpose.

::

    EasyEditError
    ├── EditError (ValueError)                 an edit that cannot be carried out as written
    │   ├── SubjectNotFoundError               the subject does not occur in the prompt
    │   ├── SubjectRequiredError               the method needs a subject and got none
    │   ├── EmptyTargetError                   nothing to learn
    │   ├── PromptTooLongError                 it does not fit into the model's context
    │   ├── ImageError                         no such image, not an image, or not as many as named
    │   ├── ContradictingEditsError            one prompt, two targets
    │   ├── RenamedCallError (AttributeError)  it has another name in this version
    │   └── EditFailed                         tried, and no change was found that carries it out
    ├── EditCancelled (RuntimeError)           stopped by the user; the model is as it was
    ├── DataError (ValueError)                 a file of edits that cannot be read
    ├── HyperParamsError (ValueError)          unknown, mistyped or impossible settings
    │   └── HyperParamsFileError (OSError)     no such file, or not YAML
    ├── UnknownMethodError (LookupError)       no method of that name
    ├── UnknownScorerError (LookupError)       no metric of that name
    ├── UnknownPresetError (LookupError)       no evaluation preset of that name
    ├── UnknownFamilyError (LookupError)       an architecture nobody described or recognised
    ├── UnsupportedModelError (ValueError)     this method cannot edit this model
    ├── ModelLoadError (OSError)               no such model, or unreadable
    ├── MetaDeviceError (RuntimeError)         weights that are nowhere
    ├── PatchError (ValueError)
    │   ├── PatchFormatError                   unreadable, truncated or not ours
    │   ├── PatchMismatchError                 made for another model
    │   └── PatchStateError                    applied twice, or undone without being applied
    ├── ArchiveError (ValueError)              a trained editor: unreadable, or for another model
    ├── TrainingError (ValueError)             a training that cannot be started or continued
    │   └── TrainingBusyError                  another process trains in the folder
    ├── MomentsError (ValueError)              statistics that cannot be collected
    ├── TraceError (ValueError)                a trace that cannot be made as asked
    ├── DivergedError (ArithmeticError)        a loss that is not a number
    ├── JudgeError (RuntimeError)              a judging model that does not answer
    ├── DownstreamError (ValueError)           a downstream task that is unknown or cannot be run
    ├── BenchError (ValueError)                a benchmark run that cannot be started or read
    │   ├── RunMismatchError                   the folder holds a run with other settings
    │   └── RunBusyError                       another process works in the folder
    ├── LedgerError (ValueError)               a ledger of edits that cannot be used as asked
    │   ├── LedgerBusyError                    another process writes to it
    │   ├── LedgerConflictError                an edit that conflicts with active ones
    │   └── LedgerHealthError                  the edited model was beyond limits; rolled back
    ├── ServingError (ValueError)              a server that cannot be started, or a bad request
    │   ├── UnknownServedModelError (LookupError)  no model of that name is served
    │   └── ServerBusyError                    too many requests wait
    ├── ManifestError (ValueError)             files that are not those of their manifest
    │   └── SignatureError                     not signed, or not by this key
    ├── HubError (OSError)                     a repository that cannot be read or written
    ├── OutputError (OSError)                  an output file or folder that cannot be written
    └── MissingExtraError (ImportError)        an optional package is not installed

Each says what was given, what is allowed and what to do. An edit that fails leaves the model
bit-identical.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class EasyEditError(Exception):
    """Base of all errors raised on purpose."""

    def __str__(self) -> str:
        # LookupError would quote the message; an error is a sentence.
        return str(self.args[0]) if self.args else ""


class EditError(EasyEditError, ValueError):
    """An edit that cannot be carried out as written."""


class SubjectNotFoundError(EditError):
    """The subject does not occur in the prompt."""


class SubjectRequiredError(EditError):
    """The method locates facts by their subject and the edit names none."""


class EmptyTargetError(EditError):
    """The target holds nothing to learn."""


class PromptTooLongError(EditError):
    """Prompt and answer have more tokens than the model's context holds."""


class ImageError(EditError):
    """An image is missing, damaged or too large, or a prompt has another number of places."""


class ContradictingEditsError(EditError):
    """Two edits of one request give the same prompt different targets."""


class EditFailed(EditError):
    """An edit was tried and no change was found that carries it out; the model is unchanged."""


class EditCancelled(EasyEditError, RuntimeError):
    """The user stopped the work before its end; the model is unchanged."""


class RenamedCallError(EditError, AttributeError):
    """A method of other versions that does not exist here; names what takes its place."""


class DataError(EasyEditError, ValueError):
    """A file of edits that cannot be read; the message names file and record."""


class HyperParamsError(EasyEditError, ValueError):
    """Unknown, mistyped or impossible hyper-parameters; lists every problem, not the first."""


class HyperParamsFileError(HyperParamsError, OSError):
    """The hyper-parameter file is missing or is not YAML."""


class UnknownMethodError(EasyEditError, LookupError):
    """No editing method of that name."""


class UnknownScorerError(EasyEditError, LookupError):
    """No scorer of that name."""


class UnknownPresetError(EasyEditError, LookupError):
    """No evaluation preset of that name."""


class UnknownFamilyError(EasyEditError, LookupError):
    """The architecture has no family row and its structure could not be recognised."""


class UnsupportedModelError(EasyEditError, ValueError):
    """The method, as configured, cannot edit this kind of model."""


class ModelLoadError(EasyEditError, OSError):
    """The model cannot be found or read."""


class MetaDeviceError(EasyEditError, RuntimeError):
    """The model's weights are nowhere: on the meta device, and not offloaded."""


class PatchError(EasyEditError, ValueError):
    """Something is wrong with a patch."""


class PatchFormatError(PatchError):
    """The file is unreadable, truncated or not an EasyEdit patch."""


class PatchMismatchError(PatchError):
    """The patch was made for another model."""


class PatchStateError(PatchError):
    """The patch is already applied, or is not applied."""


class ArchiveError(EasyEditError, ValueError):
    """What a training left is unreadable, not ours, or of another method or model."""


class TrainingError(EasyEditError, ValueError):
    """A training that cannot be started or continued as asked."""


class TrainingBusyError(TrainingError):
    """Another process trains in the same folder; names process, host and start."""


class MomentsError(EasyEditError, ValueError):
    """Second moments cannot be collected from this model or text."""


class TraceError(EasyEditError, ValueError):
    """A causal trace or a logit lens cannot be made as asked."""


class DivergedError(EasyEditError, ArithmeticError):
    """A loss became NaN or infinite."""


class BenchError(EasyEditError, ValueError):
    """A benchmark run that cannot be started, continued or read."""


class RunMismatchError(BenchError):
    """The folder holds a run with other settings; lists what differs."""


class RunBusyError(BenchError):
    """Another process works in the same run folder."""


class LedgerError(EasyEditError, ValueError):
    """A ledger of edits is missing, damaged, of another model, or cannot be used as asked."""


class LedgerBusyError(LedgerError):
    """Another process writes to the ledger; names process, host and start."""


class LedgerConflictError(LedgerError):
    """An edit conflicts with edits that are active; nothing was changed. Names the ways out.

    Attributes:
        conflicts: all of them, where the caller wants more than the message.
    """

    def __init__(self, message: str = "", conflicts: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.conflicts = tuple(conflicts)


class LedgerHealthError(LedgerError):
    """An edit was made, the model was beyond its limits, and the edit was rolled back to the bit.

    Attributes:
        number: the entry that says so; a new edit's is ``proposed``.
        health: what was measured.
    """

    def __init__(self, message: str = "", number: int = 0, health: object = None) -> None:
        super().__init__(message)
        self.number = number
        self.health = health


class ServingError(EasyEditError, ValueError):
    """A server that cannot be started as asked, or a request that it cannot answer."""


class UnknownServedModelError(ServingError, LookupError):
    """No model of that name is served; lists those that are."""


class ServerBusyError(ServingError):
    """Too many requests wait, or the server is shutting down; ask again later."""


class ManifestError(EasyEditError, ValueError):
    """Files that were passed on are missing, changed, or have no manifest."""


class SignatureError(ManifestError):
    """A manifest is not signed, not by this key, or cannot be signed."""


class HubError(EasyEditError, OSError):
    """A repository on a hub cannot be reached, read or written; says what the hub answered."""


class JudgeError(EasyEditError, RuntimeError):
    """The judging model cannot be reached, refuses, or does not answer as one."""


class DownstreamError(EasyEditError, ValueError):
    """A downstream task is unknown, or cannot be run as it is defined."""


class OutputError(EasyEditError, OSError):
    """An output file or folder that cannot be written; names it as the user gave it."""


class MissingExtraError(EasyEditError, ImportError):
    """An optional package is not installed; the message holds the install command."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingExtraError:
        """The error for ``package``, which ``pip install "easyedit-lm[extra]"`` brings."""
        return cls(f'{purpose} needs {package}. Install it: pip install "easyedit-lm[{extra}]"')


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known word, or an empty string."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
