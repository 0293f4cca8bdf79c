"""A GGUF file with some tensors replaced; metadata and all other tensors keep their bits.

The ``gguf`` library reads, quantizes and dequantizes. The metadata are copied as bytes: writing
them anew would lose what the library cannot represent (an empty list, a token that is no UTF-8).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from easyeditor.errors import ModelLoadError
from easyeditor.export.gguf_names import library

QUANTIZATIONS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
"""The types that the library can quantize to, from the most bits to the fewest."""
WHOLE = ("F32", "F16", "BF16")
"""Those that are no quantization."""
HEADER_BYTES = 24
"""Magic, version, number of tensors, number of metadata entries."""
UINT32, QUANTIZATION_VERSION = 4, 2

Array = np.ndarray[Any, Any]


def read_gguf(file: Path) -> Any:
    """The library's reader of a GGUF file; tensors stay on disk until they are read.

    Raises:
        ModelLoadError: there is no such file, it is damaged, one of several parts, or an adapter.
        MissingExtraError: the library is not installed.
    """
    gguf = library("Reading GGUF files")
    if not file.is_file():
        raise ModelLoadError(f"No GGUF file {str(file)!r}.")
    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:  # of any type: a damaged file fails where it is damaged
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelLoadError(
            f"{file} cannot be read as a GGUF file: {reason}. Copy or download it again."
        ) from error
    parts = _value(reader, "split.count") or 1
    if parts > 1:
        raise ModelLoadError(
            f"{file} is one of {parts} parts of a model. Join them first, by llama.cpp's "
            "llama-gguf-split --merge FIRST_PART WHOLE.gguf, and name the whole file."
        )
    if _value(reader, "general.type") == "adapter" or not reader.tensors:
        raise ModelLoadError(f"{file} holds no model (an adapter?). Name the model's GGUF file.")
    return reader


def architecture_of(reader: Any) -> str:
    """The model's architecture as GGUF calls it."""
    return str(_value(reader, "general.architecture") or "")


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def values_of(tensor: Any) -> Array:
    """The numbers of a tensor, float32, rows first.

    Raises:
        NotImplementedError: the library cannot read its type.
    """
    from gguf.quants import dequantize

    values: Array = dequantize(tensor.data, tensor.tensor_type)
    return values.reshape(tuple(int(n) for n in reversed(tensor.shape)))


def packed(values: Array, name: str) -> Array:
    """Numbers, float32, as the bytes of a type in :data:`QUANTIZATIONS`."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    result: Array = quantize(np.ascontiguousarray(values), GGMLQuantizationType[name])
    return result


def unpacked_values(data: Array, name: str, shape: tuple[int, ...]) -> Array:
    """The numbers that :func:`packed` stored, float32."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values: Array = dequantize(data, GGMLQuantizationType[name])
    return values.reshape(shape)


def block_length(name: str) -> int:
    """How many numbers of a row are quantized together."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return int(GGML_QUANT_SIZES[GGMLQuantizationType[name]][0])


def write_gguf(
    reader: Any, file: Path, replaced: Mapping[str, tuple[Array, str]], file_type: str | None
) -> None:
    """Write the file again with some tensors replaced.

    Args:
        reader: of the source.
        file: to write.
        replaced: ``{tensor: (its bytes, their type)}``.
        file_type: what the file calls itself, the type of most matrices; None: as the source.
    """
    from gguf import GGMLQuantizationType

    metadata = bytearray(reader.data[HEADER_BYTES : reader.tensors[0].field.offset].tobytes())
    entries = sum(1 for name in reader.fields if not name.startswith("GGUF."))
    if file_type is not None:
        _set_file_type(reader, metadata, file_type)
    quantized = any(name not in WHOLE for _, name in replaced.values())
    if quantized and reader.get_field("general.quantization_version") is None:
        metadata += _entry("general.quantization_version", QUANTIZATION_VERSION)
        entries += 1
    with file.open("wb") as out:
        version = bytes(reader.data[4:8])
        out.write(b"GGUF" + version + struct.pack("<QQ", len(reader.tensors), entries) + metadata)
        offset = 0
        for tensor in reader.tensors:
            data, kind = replaced.get(tensor.name, (tensor.data, tensor.tensor_type.name))
            name = tensor.name.encode()
            dims = [int(n) for n in tensor.shape]
            out.write(struct.pack("<Q", len(name)) + name)
            out.write(struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
            out.write(struct.pack("<IQ", GGMLQuantizationType[kind], offset))
            offset += data.nbytes + -data.nbytes % reader.alignment
        _pad(out, reader.alignment)
        for tensor in reader.tensors:
            data, _ = replaced.get(tensor.name, (tensor.data, ""))
            out.write(np.ascontiguousarray(data).data)
            _pad(out, reader.alignment)


def _pad(out: BinaryIO, alignment: int) -> None:
    out.write(b"\0" * (-out.tell() % alignment))


def _set_file_type(reader: Any, metadata: bytearray, name: str) -> None:
    """Change the number that says what most matrices are; other programs only print it."""
    from gguf import LlamaFileType

    field = reader.get_field("general.file_type")
    if field is None or field.types[-1] != UINT32:
        return
    known = {
        kind.name.rpartition("MOSTLY_")[2].removeprefix("ALL_"): kind for kind in LlamaFileType
    }
    start = field.offset - HEADER_BYTES + sum(part.nbytes for part in field.parts[:-1])
    metadata[start : start + 4] = struct.pack("<I", known[name])


def _entry(key: str, value: int) -> bytes:
    name = key.encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<II", UINT32, value)
