import torch

from scfast import _kernels, doctor, ops


def test_every_attention_op_has_a_backend_and_reasons():
    report = doctor.examine()
    assert set(report["backends"]) == {name for name in ops.__all__ if name.islower()}
    for line in report["backends"].values():
        assert line.startswith("cpu for ")
        assert "reference" in line


def test_the_machine_is_this_one():
    report = doctor.examine()
    assert report["machine"]["torch threads"] == torch.get_num_threads()
    assert report["kernels"]["instruction set"] == _kernels.instruction_set()
    assert report["kernels"]["available"] == _kernels.instruction_sets()
    assert (report["kernels"]["compiled with CUDA"] is False) == (_kernels.cuda_build() is None)


def test_a_build_for_gpus_says_what_it_loads_where():
    device = {"name": "H200", "capability": (9, 0), "memory": 139 * 2**30, "binary": 90}
    build = {
        "toolkit": 13000,
        "architectures": "80-real 90a-real",
        "driver": 13000,
        "devices": [device],
        "error": "",
    }
    shown = doctor._cuda(build)
    assert shown["compiled with CUDA"] == "13.0"
    assert shown["CUDA devices"] == ["H200 (sm_90, 139 GiB, loads code for sm_90)"]
    without = doctor._cuda(build | {"devices": [], "error": "no driver"})
    assert without["CUDA devices"] == ["none: no driver"]
    assert doctor._cuda(None) == {"compiled with CUDA": False}


def test_a_package_that_is_not_there_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(doctor, "OPTIONAL", {"no-such-package-here": "nothing"})
    assert doctor.examine()["optional packages"] == {"no-such-package-here (nothing)": None}


def test_limits_of_control_groups(tmp_path):
    assert doctor._limit(tmp_path) == "none"
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor._limit(tmp_path) == "none"
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    assert doctor._limit(tmp_path) == "3.0 GiB"
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**30))
    assert doctor._limit(tmp_path) == "1.0 GiB"
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))  # version 1 without a limit
    assert doctor._limit(tmp_path) == "3.0 GiB"


def test_variables_and_extras_are_named(monkeypatch):
    monkeypatch.setenv("SCFAST_MADE_UP", "yes")
    found = doctor.examine()
    assert found["environment"]["SCFAST_MADE_UP"] == "yes"
    assert {"extra dask", "extra gpu", "extra networks", "extra scanpy"} <= set(found["environment"])
    assert all(found["packages"].values())
