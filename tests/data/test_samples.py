"""Data of every kind becomes samples; what does not fit the model is an Error that says where."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from qcompiler.data.samples import Samples, samples
from qcompiler.errors import Error

IMAGE = {"x": ("float32", ("N", 3, 4, 4))}
TOKENS = {"ids": ("int64", (1, "S")), "mask": ("int64", (1, "S"))}
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((5, 3, 4, 4)).astype(np.float32)


def images_of(found: Samples) -> np.ndarray:
    return np.concatenate([s["x"] for s in found])


def test_an_npz_is_read_sample_by_sample_and_again(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "c.npz", x=IMAGES)
        found = samples(tmp_path / "c.npz", IMAGE)
        assert found.count == 5
        assert found.describe() == {"calibration_data": "c.npz (5 samples)"}
        assert [s["x"].shape for s in found] == [(1, 3, 4, 4)] * 5
        np.testing.assert_array_equal(images_of(found), IMAGES)
        np.testing.assert_array_equal(images_of(found), IMAGES)


def test_the_models_batch_cuts_the_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", IMAGES)
    found = samples(str(tmp_path / "c.npy"), {"x": ("float32", (2, 3, 4, 4))})
    assert found.count == 2
    np.testing.assert_array_equal(images_of(found), IMAGES[:4])
    eight = {"x": ("float32", (8, 3, 4, 4))}
    with pytest.raises(Error, match="5 samples do not fill the model's batch of 8") as refused:
        samples(tmp_path / "c.npy", eight)
    assert "--opt-dim NAME=5" in refused.value.hint
    with pytest.raises(Error, match=r"shape \[1,3,4,4\] where \[8,3,4,4\] is needed") as refused:
        list(samples([{"x": i[None]} for i in IMAGES], eight))
    assert "all samples in one array" in refused.value.hint
    for other in (IMAGES[:1, :2], IMAGES[0], np.zeros((), np.float32)):
        with pytest.raises(Error, match="is needed") as refused:
            list(samples([{"x": other}], eight))
        assert not refused.value.hint


def test_one_array_of_another_name_is_the_only_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", features=IMAGES, labels=np.arange(5))
    np.testing.assert_array_equal(images_of(samples(tmp_path / "c.npz", IMAGE)), IMAGES)
    np.savez(tmp_path / "c.npz", a=IMAGES, b=IMAGES)
    with pytest.raises(Error, match=r"no array 'x', and 2 that fit it\nhint: the arrays are 'a'"):
        samples(tmp_path / "c.npz", IMAGE)


def test_whole_inputs_may_be_stacked_and_a_single_one_may_lack_its_batch(tmp_path: Path) -> None:
    found = samples({"x": IMAGES[:, np.newaxis]}, IMAGE)
    assert [s["x"].shape for s in found] == [(1, 3, 4, 4)] * 5
    for index, image in enumerate(IMAGES):
        np.save(tmp_path / f"image{index + 8}.npy", image)  # 8, 9, 10: sorted as numbers
    np.testing.assert_array_equal(images_of(samples(tmp_path, IMAGE)), IMAGES)
    assert samples(tmp_path, IMAGE, limit=2).count is None
    np.testing.assert_array_equal(images_of(samples(tmp_path, IMAGE, limit=2)), IMAGES[:2])


def test_several_inputs_go_by_name_and_a_scalar_serves_all(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(3, 4)
    np.savez(tmp_path / "t.npz", ids=ids, mask=np.ones_like(ids), rate=np.int64(16000), label=ids)
    found = list(samples(tmp_path / "t.npz", {**TOKENS, "rate": ("int64", ())}))
    assert [s["ids"].tolist() for s in found] == [[row] for row in ids.tolist()]
    assert all(s["rate"] == 16000 and list(s) == ["ids", "mask", "rate"] for s in found)
    np.savez(tmp_path / "t.npz", ids=ids, mask=np.ones((2, 4), np.int64))
    with pytest.raises(Error, match="not have equally many samples: 3 of 'ids', 2 of 'mask'"):
        samples(tmp_path / "t.npz", TOKENS)
    np.savez(tmp_path / "t.npz", ids=ids)
    with pytest.raises(Error, match="no array 'mask'"):
        samples(tmp_path / "t.npz", TOKENS)


def test_a_symbol_is_one_size_within_a_sample() -> None:
    ids = np.ones((1, 4), np.int64)
    assert len(list(samples([{"ids": ids, "mask": ids}], TOKENS))) == 1
    with pytest.raises(Error, match=r"sample 0, input 'mask': shape \[1,3\] where \[1,S\]"):
        list(samples([{"ids": ids, "mask": ids[:, :3]}], TOKENS))


def test_onnx_test_data_is_read_in_the_inputs_order(tmp_path: Path) -> None:
    for number, folder in enumerate(("test_data_set_0", "test_data_set_1")):
        (tmp_path / folder).mkdir()
        for i in range(2):
            tensor = numpy_helper.from_array(np.array([[number, i]], np.int64))
            (tmp_path / folder / f"input_{i}.pb").write_bytes(tensor.SerializeToString())
    found = list(samples(tmp_path, TOKENS))
    assert [s["mask"].tolist() for s in found] == [[[0, 1]], [[1, 1]]]
    assert len(list(samples(tmp_path / "test_data_set_1", TOKENS))) == 1
    (tmp_path / "test_data_set_1" / "input_1.pb").write_bytes(b"\xff\xff")
    with pytest.raises(Error, match=r"test_data_set_1/input_1\.pb: not an ONNX tensor"):
        list(samples(tmp_path, TOKENS))


class Reading:
    """What onnxruntime's quantizer is given."""

    def __init__(self) -> None:
        self.left = iter(IMAGES)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.left, None)
        return None if image is None else {"x": image[np.newaxis]}


class Rewinding(Reading):
    def rewind(self) -> None:
        self.left = iter(IMAGES)


def test_a_calibration_data_reader_is_read_and_rewound() -> None:
    found = samples(Rewinding(), IMAGE)
    np.testing.assert_array_equal(images_of(found), IMAGES)
    np.testing.assert_array_equal(images_of(found), IMAGES)
    once = samples(Reading(), IMAGE)
    np.testing.assert_array_equal(images_of(once), IMAGES)
    with pytest.raises(Error, match="only once\nhint: give it a rewind"):
        list(once)


def test_an_iterator_is_read_once_and_a_list_often() -> None:
    listed = samples([i[np.newaxis] for i in IMAGES], IMAGE)
    assert listed.count == 5
    assert len(list(listed)) == len(list(listed)) == 5

    def generated() -> Iterator[dict[str, np.ndarray]]:
        yield from ({"x": i[np.newaxis]} for i in IMAGES)

    once = samples(generated(), IMAGE)
    assert len(list(once)) == 5
    with pytest.raises(Error, match="give a list"):
        list(once)


def test_synthetic_samples_are_the_same_every_time_and_of_the_inputs_types() -> None:
    wanted = {
        "x": ("float32", ("N", 3)),
        "ids": ("int64", (1, 5)),
        "b": ("bool", (2,)),
        "q": ("uint8", (1, 64)),
        "h": ("bfloat16", (1, 2)),
    }
    found = samples("synthetic", wanted)
    assert found.synthetic
    first, second = list(found), list(found)
    assert len(first) == found.count
    for a, b in zip(first, second, strict=True):
        assert {k: v.dtype.name for k, v in a.items()} == {k: d for k, (d, _) in wanted.items()}
        assert all(np.array_equal(a[k], b[k]) for k in wanted)
    assert set(np.unique([s["ids"] for s in first])) == {0, 1}
    with pytest.raises(Error, match="dimension 'S' is not known"):
        samples("synthetic", {"ids": ("int64", (1, "S"))})


@pytest.mark.parametrize(
    ("sample", "what"),
    [
        ({"x": IMAGES[:1].astype(np.float64)}, "sample 0, input 'x': float64 where float32"),
        ({"x": IMAGES[:1, :2]}, r"sample 0, input 'x': shape \[1,2,4,4\] where \[N,3,4,4\]"),
        ({"x": IMAGES[:1] * np.nan}, "sample 0, input 'x': it contains NaN"),
        ({"x": IMAGES[:1] * np.inf}, "sample 0, input 'x': it contains infinity"),
        ({"y": IMAGES[:1]}, "sample 0: no input 'y'\nhint: the inputs are 'x'"),
        ({}, "sample 0, input 'x': missing"),
        ({"x": [["a"]]}, "sample 0, input 'x': <U1 where float32"),
        ({"x": None}, "sample 0, input 'x': None given, an array wanted"),
        ({"x": [[1.0], [1.0, 2.0]]}, "sample 0, input 'x': numpy cannot read this list"),
        ({"x": np.ma.masked_less(IMAGES[:1], 0)}, "sample 0, input 'x': .* masked"),
    ],
)
def test_a_sample_that_does_not_fit_says_where(sample: dict[str, object], what: str) -> None:
    with pytest.raises(Error, match=what):
        list(samples([sample], IMAGE))


def test_an_array_alone_is_that_of_the_only_input() -> None:
    np.testing.assert_array_equal(images_of(samples(IMAGES, IMAGE)), IMAGES)
    with pytest.raises(Error, match="no array 'ids'"):
        samples(IMAGES, TOKENS)


def test_a_reader_of_anything_but_named_arrays_is_refused() -> None:
    class Listing(Reading):
        def get_next(self) -> object:
            return [IMAGES[:1]]

    with pytest.raises(Error, match=r"list given, \{input name: array\} wanted"):
        list(samples(Listing(), IMAGE, 2))


def test_empty_data_is_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=IMAGES[:0])
    for source in (tmp_path / "c.npz", [], {"x": IMAGES[:0]}):
        with pytest.raises(Error, match="no samples"):
            samples(source, IMAGE)
    with pytest.raises(Error, match="no samples"):
        list(samples(iter([]), IMAGE))
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match=r"no \.npy, \.npz or input_0\.pb"):
        samples(tmp_path / "empty", IMAGE)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("unpickled",))

    np.save(tmp_path / "c.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "c.npz", x=np.array([Trap()], dtype=object))
    for name in ("c.npy", "c.npz"):
        with pytest.raises(Error, match="Python objects"):
            samples(tmp_path / name, IMAGE)


def test_a_header_that_claims_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    for shape in ((10**15, 3, 4, 4), (1, 3, 4, 4), (10**30, 3, 4, 4)):
        header = io.BytesIO()
        spelled = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, spelled)
        (tmp_path / "c.npy").write_bytes(header.getvalue() + b"\0" * 64)
        with pytest.raises(Error, match="64 bytes where float32"):
            samples(tmp_path / "c.npy", IMAGE)
        with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
            archive.writestr("x.npy", header.getvalue() + b"\0" * 64)
        with pytest.raises(Error, match="64 bytes where float32"):
            samples(tmp_path / "c.npz", IMAGE)


def test_damaged_files_are_errors_and_nothing_else(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "c.npz", x=IMAGES)
    np.save(tmp_path / "c.npy", IMAGES)
    rng = np.random.default_rng(1)
    for name in ("c.npz", "c.npy"):
        whole = (tmp_path / name).read_bytes()
        damaged = [whole[:n] for n in range(0, len(whole), 97)]
        for _ in range(100):
            flipped = bytearray(whole)
            flipped[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
            damaged.append(bytes(flipped))
        for data in damaged:
            (tmp_path / f"bad_{name}").write_bytes(data)
            try:
                found = list(samples(tmp_path / f"bad_{name}", IMAGE))
            except Error:
                continue
            assert all(s["x"].shape == (1, 3, 4, 4) for s in found)


def test_what_holds_no_samples_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("1 2 3")
    with pytest.raises(Error, match="unknown kind of data"):
        samples(tmp_path / "c.txt", IMAGE)
    with pytest.raises(Error, match="no such file"):
        samples("nowhere.npz", IMAGE)
    with pytest.raises(Error, match="int holds no samples"):
        samples(7, IMAGE)
    with pytest.raises(Error, match="no inputs"):
        samples("synthetic", {})
    (tmp_path / "c.npz").write_bytes(b"PK")
    with pytest.raises(Error, match=r"not a \.npz file"):
        samples(tmp_path / "c.npz", IMAGE)
    (tmp_path / "c.npz").unlink()
    for unfit, match in (
        (TensorProto(data_type=TensorProto.COMPLEX64), "type COMPLEX64 are not supported"),
        (TensorProto(data_type=TensorProto.STRING), r"0 strings for \[\]"),
        (TensorProto(data_type=TensorProto.STRING, string_data=[b"a"]), "where float32 is needed"),
    ):
        (tmp_path / "input_0.pb").write_bytes(unfit.SerializeToString())
        with pytest.raises(Error, match=match):
            list(samples(tmp_path, IMAGE))
