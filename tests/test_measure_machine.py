"""Which machine and which versions a figure comes from."""

import json
import subprocess
import sys
from importlib.metadata import version

from subquad.measure import machine as hardware
from subquad.measure.machine import machine, versions


def test_the_fingerprint_is_stable_and_written_as_json():
    assert json.loads(json.dumps(machine())) == machine()


def test_the_fingerprint_tells_machines_apart(monkeypatch):
    here = machine()["fingerprint"]
    monkeypatch.setattr(hardware, "_cpu_model", lambda: "another")
    assert machine()["fingerprint"] != here


def test_physical_cores_are_counted_and_not_their_threads(monkeypatch, tmp_path):
    written = [
        f"model name\t: Some CPU: fast\nphysical id\t: {i % 2}\ncore id\t: {i // 4}\nflags\t:\n"
        for i in range(8)
    ]
    (tmp_path / "cpuinfo").write_text("\n".join(written))
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    assert (machine()["cpu"], machine()["cores"]) == ("Some CPU: fast", 4)


def test_a_machine_that_says_nothing_of_its_processor_has_one_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    assert machine()["cpu"]
    assert machine()["cores"] >= 1


def test_versions_leave_out_what_is_not_installed():
    assert versions(["torch", "no-such-package"]) == {"torch": version("torch")}


def test_machine_and_scaling_load_without_torch():
    code = (
        "import sys, subquad.measure.machine as m, subquad.measure.scaling; m.versions();"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
