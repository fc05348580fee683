"""Archives and directories that lie about what is in them."""

import io
import json
import struct
import zipfile

import pytest
import torch

from .hostile import STATE, memory, refusal, repacked, with_pickle


@pytest.fixture
def archive(tmp_path) -> bytes:
    torch.save(STATE, tmp_path / "w.pth")
    return (tmp_path / "w.pth").read_bytes()


@pytest.mark.parametrize("record", ["data.pkl", "data/0", "extra"])
def test_compressed_records(record, archive, tmp_path):
    data = repacked(archive, {record: bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert len(data) < 2**18
    (tmp_path / "w.pth").write_bytes(data)
    with memory(2**25):
        message = refusal(tmp_path / "w.pth")
    assert message == "its records are compressed, as those of torch.save never are"


def directory_patched(data: bytes, record: str, field: int, form: str, value: int) -> bytes:
    """A field of the entry of a record in the zip's directory replaced."""
    at = data.rindex(record.encode()) - 46
    assert data[at : at + 4] == b"PK\1\2"
    patched = bytearray(data)
    struct.pack_into(form, patched, at + field, value)
    return bytes(patched)


@pytest.mark.parametrize(
    ("record", "field", "form", "value", "message"),
    [
        ("w/data/0", 24, "<I", 2**31, "its records are compressed"),
        ("w/data/0", 42, "<I", 0, "its records lie on one another"),
        ("w/data.pkl", 42, "<I", 2**31, "it is damaged or cut short"),
        ("w/data/0", 8, "<H", 1, "its records are compressed"),
        ("w/data/0", 10, "<H", 12, "its records are compressed"),
    ],
)
def test_a_directory_that_lies(record, field, form, value, message, archive, tmp_path):
    (tmp_path / "w.pth").write_bytes(directory_patched(archive, record, field, form, value))
    assert refusal(tmp_path / "w.pth").startswith(message)


@pytest.mark.parametrize("name", ["data.pkl", "DATA.PKL", "Data/0"])
def test_two_records_of_one_name(name, archive, tmp_path):
    """zipfile takes the last one; torch the first, and does not tell capitals apart."""
    (tmp_path / "w.pth").write_bytes(archive)
    with zipfile.ZipFile(tmp_path / "w.pth", "a") as opened:
        opened.writestr(f"w/{name}", b"")
    assert refusal(tmp_path / "w.pth") == "it has two records of one name"


def test_sizes_beyond_the_file(archive, tmp_path):
    last = "w/.data/serialization_id"
    data = directory_patched(archive, last, 20, "<I", 2**31)
    data = directory_patched(data, last, 24, "<I", 2**31)
    (tmp_path / "w.pth").write_bytes(data)
    assert refusal(tmp_path / "w.pth") == "its records lie on one another, or are cut short"


def test_a_record_that_is_missing_or_short(archive, tmp_path):
    (tmp_path / "w.pth").write_bytes(archive.replace(b"data/1", b"data/x"))
    assert refusal(tmp_path / "w.pth") == "it lacks data of the storage 1"
    (tmp_path / "w.pth").write_bytes(repacked(archive, {"data/1": b"abc"}))
    assert refusal(tmp_path / "w.pth") == "it lacks data of the storage 1"


def test_a_directory_or_pickle_without_end(tmp_path):
    """Each byte of them takes some ten."""
    with (tmp_path / "w.pth").open("wb") as file:
        file.write(b"PK\3\4" + bytes(26))
        file.truncate(2**25)
        file.seek(0, io.SEEK_END)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 9, 9, 2**25, 0, 0))
    assert refusal(tmp_path / "w.pth") == "its directory is too large for an archive of torch.save"
    (tmp_path / "w.pth").write_bytes(with_pickle("torch", b"N" * (2**24 + 1)))
    assert refusal(tmp_path / "w.pth") == "it has too much beside its tensors: save them alone"


def test_safetensors_that_lie(tmp_path):
    for entry, message in (
        (dict(dtype="F32", shape=[2**40], data_offsets=[0, 4]), "SafetensorError"),
        (dict(dtype="F32", shape=[2**62, 2**62], data_offsets=[0, 4]), "SafetensorError"),
        (dict(dtype="F32", shape=[1], data_offsets=[0, 2**40]), "SafetensorError"),
        (dict(dtype="F32", shape=[1], data_offsets=[4, 0]), "SafetensorError"),
        (dict(dtype="X", shape=[1], data_offsets=[0, 4]), "SafetensorError"),
    ):
        header = json.dumps({"w": entry}).encode()
        (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with memory(2**30):
            assert message in refusal(tmp_path / "w")
