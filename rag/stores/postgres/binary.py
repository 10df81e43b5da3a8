"""Vectors and lists of numbers as PostgreSQL's wire has them in binary: a number is not spelled out and read again."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from psycopg import Connection

_INT8, _INT8_ARRAY = 20, 1016  # pg_type.dat of PostgreSQL
_ELEMENT = np.dtype([("size", ">i4"), ("value", ">i8")])


@dataclass(frozen=True)
class BigIntegers:
    """Whole numbers, (n,) int64, as a parameter of type bigint[]."""

    values: npt.NDArray[np.int64]


def vector_bytes(vector: npt.NDArray[Any]) -> bytes:
    """As pgvector takes one (vector_recv): dimension and an unused number of 16 bits, float32; high bytes first."""
    return struct.pack(">HH", len(vector), 0) + vector.astype(">f4").tobytes()


def array_bytes(numbers: BigIntegers) -> bytes:
    """As PostgreSQL takes bigint[] (array_recv): dimensions, nulls, type; length, first place; then each number."""
    rows = np.empty(len(numbers.values), dtype=_ELEMENT)
    rows["size"], rows["value"] = 8, numbers.values
    dimensions = 1 if len(rows) else 0
    head = struct.pack(">iiI", dimensions, 0, _INT8)
    return head + (struct.pack(">ii", len(rows), 1) if dimensions else b"") + rows.tobytes()


def register_types(connection: Connection[Any], oid: int) -> None:
    """Let a connection take and give arrays of numpy as vectors (by this number), BigIntegers as bigint[]."""
    from psycopg.adapt import Dumper, Loader
    from psycopg.pq import Format
    from psycopg.types import TypeInfo

    class _VectorDumper(Dumper):
        format = Format.BINARY

        def dump(self, obj: Any) -> bytes:
            return vector_bytes(obj)

    class _VectorLoader(Loader):
        format = Format.BINARY

        def load(self, data: Any) -> Any:
            return np.frombuffer(bytes(data), dtype=">f4", offset=4).astype(np.float32)

    class _NumbersDumper(Dumper):
        format = Format.BINARY
        oid = _INT8_ARRAY

        def dump(self, obj: Any) -> bytes:
            return array_bytes(obj)

    TypeInfo("vector", oid, 0).register(connection)
    _VectorDumper.oid = oid
    connection.adapters.register_dumper(np.ndarray, _VectorDumper)
    connection.adapters.register_loader(oid, _VectorLoader)
    connection.adapters.register_dumper(BigIntegers, _NumbersDumper)
