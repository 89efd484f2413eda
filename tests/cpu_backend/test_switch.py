"""The switch: on, off without a trace, as a command, and in child processes."""

import os
import shutil
import sys
import unittest.mock
from pathlib import Path

import cpu_backend
from cpu_backend.environment import SITE_DIRECTORY

HERE = Path(__file__).parent
SITE = str(Path(cpu_backend.__file__).parent / "site")


def test_off_leaves_no_trace(run_python):
    run_python(str(HERE / "switch_checks.py"))


def test_cuda_names_work_in_a_script_run_by_the_command(run_python, tmp_path):
    script = str(HERE / "stand_in_checks.py")
    printed = run_python("-m", "cpu_backend", script, "--flag", "value", CHECK_FOLDER=str(tmp_path))
    assert printed.splitlines()[-1] == "all checked"


def test_the_command_runs_modules(monkeypatch, capsys, tmp_path):
    from cpu_backend import __main__ as command

    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "job.py").write_text(
        "import os, sys\nprint(__name__, __file__, sys.argv[1:], os.environ['TORCHDYNAMO_DISABLE'])"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cpu_backend", "-m", "some_package.job", "a", "-b"])
    # A script of its own is run with the real one, in a process of its own.
    monkeypatch.setattr(command, "enable", lambda: print("enabled"))
    with unittest.mock.patch.dict(os.environ):
        command.main()
    assert capsys.readouterr().out.splitlines() == [
        "enabled",
        f"__main__ {package / 'job.py'} ['a', '-b'] 1",
    ]


def test_the_command_refuses_what_it_cannot_run(monkeypatch):
    from cpu_backend import __main__ as command

    before = cpu_backend.is_enabled()

    def message(*arguments):
        monkeypatch.setattr(sys, "argv", ["cpu_backend", *arguments])
        try:
            command.main()
        except SystemExit as stop:
            return str(stop)
        raise AssertionError("ran")

    assert message() == message("-m") == message("--help") == command.USAGE
    assert message("no_such.py").endswith("the script 'no_such.py' does not exist.")
    assert cpu_backend.is_enabled() == before


def test_child_environment_keeps_what_is_set(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/one", SITE, "/two"]))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    environment = cpu_backend.child_environment()
    here = str(Path(sys.executable).parent)
    assert environment == {
        "PATH": os.pathsep.join([here, "/bin"]),
        "PYTHONPATH": os.pathsep.join([SITE, "/one", "/two"]),
        "NEMO_VLM_CPU_BACKEND": "1",
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TORCHDYNAMO_DISABLE": "1",
        "TORCH_CUDA_ARCH_LIST": "8.0",
    }
    assert os.environ["PYTHONPATH"].startswith("/one")
    monkeypatch.setattr(os, "environ", {**os.environ, **environment})
    assert cpu_backend.child_environment() == environment


def test_a_child_starts_with_nothing_imported_and_runs_the_hidden_sitecustomize(
    run_python, tmp_path
):
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.hidden_ran = True")
    code = (
        "import builtins, sys; print(hasattr(builtins, 'hidden_ran'), 'torch' in sys.modules, "
        "'cpu_backend' in sys.modules, type(sys.meta_path[0]).__name__)"
    )
    environment = cpu_backend.child_environment()
    environment["PYTHONPATH"] += os.pathsep + str(tmp_path)
    assert run_python("-c", code, **environment).split() == [
        "True",
        "False",
        "False",
        "_EnablingFinder",
    ]
    environment["NEMO_VLM_CPU_BACKEND"] = ""
    assert run_python("-c", code, **environment).split()[:3] == ["True", "False", "False"]
    assert "_EnablingFinder" not in run_python("-c", code, **environment)


def test_two_checkouts_on_the_path_run_each_once(run_python, tmp_path):
    copy = shutil.copytree(SITE_DIRECTORY, tmp_path / "cpu_backend" / "site")
    (tmp_path / "sitecustomize.py").write_text("print('hidden')")
    environment = cpu_backend.child_environment()
    environment["PYTHONPATH"] += os.pathsep + os.pathsep.join([str(copy), str(tmp_path)])
    assert run_python("-c", "print('ran')", **environment).split() == ["hidden", "ran"]
