"""Load a model by what the user calls it: a hub name, a folder, a GGUF file, the embedded one."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from easyeditor.errors import (
    EasyEditError,
    MissingExtraError,
    ModelLoadError,
    PatchStateError,
    did_you_mean,
)
from easyeditor.files import check_writable_place, folder_written_whole
from easyeditor.lm import embedded, flags_model, gguf_cache
from easyeditor.lm.forward.context import has_adapters
from easyeditor.lm.model import LM
from easyeditor.lm.quantized import SCHEMES, quantization_config
from easyeditor.lm.routing import routers_of
from easyeditor.model_spec import ModelSpec
from easyeditor.paths import cache_dir

__all__ = ["ModelSpec", "cache_dir", "load", "pick_device", "save"]

log = logging.getLogger(__name__)


def pick_device(wanted: int | str | None) -> torch.device:
    """The device a specification names.

    ``None``: the accelerator if there is one, else the CPU. A number: that accelerator; a classic
    file says ``device: 0``, which on a machine without an accelerator means the CPU.

    Raises:
        ModelLoadError: no such device here.
    """
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    count = torch.accelerator.device_count() if accelerator is not None else 0
    here = ", ".join(["cpu", *(f"{accelerator.type}:{i}" for i in range(count) if accelerator)])
    if isinstance(wanted, str) and not wanted.isdigit():
        try:
            device = torch.device(wanted)
        except RuntimeError as error:
            raise ModelLoadError(
                f"device={wanted!r} is no device: {error} Use one of {here}."
            ) from None
        known = {"cpu"} | ({accelerator.type} if accelerator is not None else set())
        if device.type not in known or (device.type != "cpu" and (device.index or 0) >= count):
            raise ModelLoadError(
                f"device={wanted!r} is not available: this machine with this build of torch has "
                f"{here}. Use one of them, or leave the device out."
            )
        return device
    if accelerator is None:
        return torch.device("cpu")
    index = int(wanted or 0)
    if not 0 <= index < count:
        raise ModelLoadError(f"device={wanted!r}: there is no such accelerator; here: {here}.")
    return torch.device(accelerator.type, index)


def load(spec: ModelSpec | str, **options: Any) -> LM:
    """Load model and tokenizer, straight to this precision and device.

    The trap: without accelerate a model for an accelerator passes through the CPU's memory.

    Args:
        spec: which model and how; a text stands for ``ModelSpec(model_name=...)``.
        options: fields of :class:`ModelSpec` that replace those of ``spec``.

    Raises:
        ModelLoadError: nothing of that name; it cannot be read; its tokenizer is missing; its
            file is damaged or lacks weights; it brings code and ``trust_remote_code`` is False; no
            such device.
        MissingExtraError: a GGUF file, and ``gguf`` or accelerate is not installed;
            ``quantization``, and bitsandbytes or accelerate is not.
        TypeError: an option that is no field of :class:`ModelSpec`.
    """
    spec = ModelSpec(spec) if isinstance(spec, str) else spec
    spec = replace(spec, **options)
    name = spec.model_name
    _check(spec)
    target = pick_device(spec.device)
    try:
        glued = name.lower() == flags_model.NAME
        inner = flags_model.TEXT_MODEL if glued else name
        where, public = _locate(inner, spec.precision)
        model, tokenizer, stored = _read(where, replace(spec, model_name=inner), target)
        processor, unseen = _processor(where, model, spec.trust_remote_code)
        if glued:
            model, public = flags_model.around(model, tokenizer), flags_model.NAME
            processor = flags_model.processor_for(tokenizer)
    except (EasyEditError, MemoryError):
        raise
    except Exception as error:  # of any type: a damaged file fails where it is damaged
        raise _load_error(name, error, spec) from error
    if public:
        model.config._name_or_path = public
    lm = LM(model, tokenizer, chat_template=spec.chat_template, processor=processor)
    lm.text.unseen = unseen
    lm.checkpoint_dtype, lm.checkpoint = stored, where
    return lm


def _check(spec: ModelSpec) -> None:
    name = spec.model_name
    if not name:
        raise ModelLoadError("No model was named. Set model_name, or pass --model.")
    if spec.dtype not in {None, "float32", "bfloat16", "float16"}:
        raise ModelLoadError(f"dtype={spec.dtype!r}: use 'float32', 'bfloat16' or 'float16'.")
    if spec.quantization not in {None, *SCHEMES}:
        raise ModelLoadError(
            f"quantization={spec.quantization!r}: use '8bit', '4bit' or leave it out."
        )
    if spec.quantization and name.lower().endswith(".gguf"):
        raise ModelLoadError(
            f"quantization={spec.quantization!r} is for checkpoints with whole weights; {name!r} "
            "is a GGUF file, whose weights are unpacked. Leave quantization out, or name the "
            "original checkpoint."
        )


def _locate(name: str, dtype: str | None) -> tuple[str, str]:
    """What transformers is given for ``name``, and the name to record where that is another."""
    if name.lower() in embedded.NAMES:
        return str(embedded.folder(name.lower())), name.lower()
    path = Path(name).expanduser()
    if name.lower().endswith(".gguf"):
        if not path.is_file():
            raise ModelLoadError(f"No GGUF file {name!r}.")
        embedded.require_gguf(f"The GGUF file {path.name}")
        return str(gguf_cache.unpacked(path, dtype)), path.name
    if path.is_dir():
        file = _only_gguf(path)
        return (str(path), "") if file is None else _locate(str(file), dtype)
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelLoadError(f"No folder {name!r}. A model folder holds config.json and weights.")
    return name, ""


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds no configuration; None where there is none.

    Raises:
        ModelLoadError: the folder holds several, so that one must be named.
    """
    files = [] if (folder / "config.json").is_file() else sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelLoadError(
            f"The folder {str(folder)!r} holds several GGUF files ({names}); name one."
        )
    return files[0] if files else None


def _load_error(name: str, error: Exception, spec: ModelSpec) -> ModelLoadError:
    text, reason = str(error), _reason(error)
    if "trust_remote_code" in text and not spec.trust_remote_code:
        return ModelLoadError(
            f"The model {name!r} is built by Python code that comes with it, which is not run "
            "unless you say so. Read that code, then set trust_remote_code=True "
            "(--trust-remote-code), or use a model that transformers itself can build."
        )
    if isinstance(error, SafetensorError):
        return ModelLoadError(
            f"The weights of {name!r} are damaged or cut off ({reason}). Copy or download the "
            "file again: a copy in the hub's cache has to be deleted first."
        )
    known = embedded.NAMES
    hint = "" if name.lower() in known else did_you_mean(name, (*known, flags_model.NAME))
    return ModelLoadError(
        f"The model {name!r} could not be loaded: {reason}.{hint} Give a hub name that is "
        f"reachable from here, a folder, a .gguf file, or {known[0]!r}."
    )


def _read(where: str, spec: ModelSpec, device: torch.device) -> tuple[PreTrainedModel, Any, Any]:
    """Model, tokenizer and the precision of the checkpoint."""
    trust = spec.trust_remote_code
    config = AutoConfig.from_pretrained(where, trust_remote_code=trust)
    auto = _auto_class(config)
    dtype = spec.precision
    stored = getattr(config, "dtype", None) or torch.float32
    kind: Any = getattr(torch, dtype) if dtype else stored
    if dtype is None and kind == torch.float16 and device.type == "cpu":
        kind = torch.float32
    tokenizer = _tokenizer(where, trust)
    direct = importlib.util.find_spec("accelerate") is not None
    if spec.model_parallel and not direct:
        raise MissingExtraError.of("accelerate", "parallel", "model_parallel")
    how: dict[str, Any] = {}
    if spec.quantization:
        if getattr(config, "quantization_config", None):
            raise ValueError("it is quantized already; leave quantization out.")
        how["quantization_config"] = quantization_config(spec.quantization, kind)
    if spec.model_parallel:
        how["device_map"] = "auto"
    elif spec.quantization or (direct and device.type != "cpu"):
        how["device_map"] = {"": device}
    model, info = auto.from_pretrained(
        where,
        dtype=kind,
        trust_remote_code=trust,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
        **how,
    )
    _check_complete(spec.model_name, info)
    if "device_map" not in how and model.device != device:
        model = model.to(device)
    return model.eval(), tokenizer, stored


def _auto_class(config: Any) -> Any:
    """The Auto class for a configuration: text-to-text, text alone, or text with images."""
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    kind = type(config)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind].__name__
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or whole in (config.architectures or ()):
            return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _processor(where: str, model: PreTrainedModel, trust: bool) -> tuple[Any, EasyEditError | None]:
    """The processor of a model that sees images, or why there is none; text needs none."""
    if type(model.config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or not hasattr(
        model.config, "vision_config"
    ):
        return None, None
    kind = type(model).__name__
    try:
        processor = AutoProcessor.from_pretrained(where, trust_remote_code=trust)
    except Exception as error:  # of any type: without torchvision mostly an AttributeError
        lacking = [p for p in ("PIL", "torchvision") if importlib.util.find_spec(p) is None]
        if lacking and not isinstance(error, OSError):  # which a missing file is
            package = {"PIL": "pillow"}.get(lacking[0], lacking[0])
            return None, MissingExtraError.of(
                f"the package {package}", "vision", f"The processor of images of this {kind}"
            )
        return None, ModelLoadError(
            f"The processor of images of {where!r} cannot be read ({_reason(error)}), so this "
            f"{kind} can be asked about text alone. Save it there: AutoProcessor.from_pretrained("
            "<original>).save_pretrained(<folder>)."
        )
    if getattr(processor, "image_processor", None) is None:
        return None, ModelLoadError(
            f"The folder of this {kind} holds no processor of images (preprocessor_config.json), "
            "so it can be asked about text alone. Save it there: AutoProcessor.from_pretrained("
            "<original>).save_pretrained(<folder>)."
        )
    return processor, None


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else repr(error)).rstrip(".")


def _tokenizer(where: str, trust: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=trust)
    except Exception as error:  # of any type: StopIteration where a folder holds none
        if "trust_remote_code" in str(error):
            raise
        if Path(where).is_dir() and not _TOKENIZER_FILES & {f.name for f in Path(where).iterdir()}:
            raise ModelLoadError(
                f"The folder {where!r} holds no tokenizer. Save the one the model was trained "
                "with there: AutoTokenizer.from_pretrained(<original>).save_pretrained(<folder>)."
            ) from error
        raise ModelLoadError(
            f"The tokenizer of {where!r} cannot be read: {str(error).strip() or repr(error)}"
        ) from error


_TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tekken.json",
    }
)


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint that leaves weights at their random initial values.

    Raises:
        ModelLoadError: weights are missing or have another shape; the message names them.
    """
    other = {name: (has, wants) for name, has, wants in info.get("mismatched_keys") or ()}
    if other:
        first = min(other)
        raise ModelLoadError(
            f"The checkpoint {name!r} has {len(other)} weights of other shapes than its "
            f"config.json describes: {first} is {tuple(other[first][0])}, not "
            f"{tuple(other[first][1])}. Copy the whole folder again, or correct config.json."
        )
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise ModelLoadError(
            f"The checkpoint {name!r} lacks {len(missing)} weights of the model that its "
            f"config.json describes: {_few(missing)}. They would be random. Copy the whole "
            "checkpoint (all files of *.safetensors.index.json), or correct config.json."
        )
    unexpected = sorted(info.get("unexpected_keys") or ())
    if unexpected:
        log.warning(
            "%s: %d weights of the checkpoint have no place in the model: %s",
            name,
            len(unexpected),
            _few(unexpected),
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … ({len(names)} in all)" if len(names) > 3 else "")


def save(lm: LM, folder: Path, *, shard_bytes: int | None = None) -> None:
    """Write model, tokenizer and any processor for transformers, in the checkpoint's precision.

    The folder appears whole or not at all, also when the process is killed. Weights that were read
    in another precision than they are computed with (float16 on a CPU) are rounded back, so that
    the unedited ones have the checkpoint's bits. No file is larger than ``shard_bytes``, where
    given.

    Raises:
        PatchStateError: the model carries an edit that is not in its weights, which no checkpoint
            can hold (the model's own ``save_pretrained`` writes the unedited weights).
        OutputError: the folder is not empty, cannot be written, or the disk is too full.
    """
    if has_adapters(lm.model) or routers_of(lm.model):
        raise PatchStateError(
            "This model carries an edit that is not in its weights (adapters on modules, or "
            "prompts sent elsewhere), so a checkpoint would hold the unedited model. Save the "
            "patch instead, save_patch(patch, path), and apply it where the model is loaded: "
            "load_patch(path).apply(model), or easyedit generate --patch."
        )
    model, stored = lm.model, lm.checkpoint_dtype
    state = None
    if stored is not None and stored != model.dtype:
        state = {
            name: tensor.to(stored) if tensor.dtype == model.dtype else tensor
            for name, tensor in model.state_dict().items()
        }
    itemsize = None if stored is None else stored.itemsize
    size = sum(p.numel() * (itemsize or p.element_size()) for p in model.parameters())
    check_writable_place(folder, folder=True, size=size)
    with folder_written_whole(Path(folder)) as part:
        limit = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
        model.save_pretrained(part, state_dict=state, **limit)
        if state is not None:  # save_pretrained writes the precision that is computed in
            file = part / "config.json"
            config = json.loads(file.read_text(encoding="utf-8"))
            names = (str(model.dtype).removeprefix("torch."), str(stored).removeprefix("torch."))
            file.write_text(json.dumps(_renamed(config, *names), indent=2) + "\n", encoding="utf-8")
        if lm.images is not None and hasattr(lm.images.processor, "save_pretrained"):
            lm.images.processor.save_pretrained(part)
        lm.tokenizer.save_pretrained(part)


def _renamed(config: Any, old: str, new: str) -> Any:
    """A configuration with its ``dtype``, and those of its parts, changed from old to new."""
    if not isinstance(config, dict):
        return config
    return {
        key: new if key == "dtype" and value == old else _renamed(value, old, new)
        for key, value in config.items()
    }
