"""`make gpu-check` on the CPU: the dry run as a whole, and what happens when something is wrong."""

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu import bench, graph, install, main_job, sanitizer
from benchmarks.gpu import ops as ops_section
from benchmarks.gpu.record import Check, Settings
from benchmarks.gpu.supervise import Section, run_section
from pyprune import ops
from pyprune.bench.results import read
from pyprune.ops import _native
from pyprune.testing import ladder

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(device="cpu", tiny=True, scratch="none")


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(finished process, folder of the rows, $OUT) of `gpu_check --dry` in full."""
    if _native.missing("cpp"):
        pytest.skip("the C++ extension is not built")
    results, out = (tmp_path_factory.mktemp(name) for name in ("results", "out"))
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry", "--no-build", "--results", str(results)]
    environment = os.environ | {"OUT": str(out)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True), results, out


def test_dry_run_passes(dry):
    done, _, _ = dry
    assert done.returncode == 0, done.stdout + done.stderr
    table = dict(re.findall(r"^(\w+) +\d+ +(\d+) +\d+ +[\d.]+$", done.stdout, re.MULTILINE))
    assert table == dict.fromkeys(("build", *(section.name for section in gpu_check.SECTIONS)), "0")


def test_every_pair_is_checked_or_skipped_with_a_reason(dry):
    done, _, _ = dry
    for row in ops.table():
        pair = f"{row.op} {row.backend}"
        checked = re.search(rf"^passed  {pair}: float64 .* (\d+) cases", done.stdout, re.MULTILINE)
        skipped = re.search(rf"^SKIPPED ops: {pair}: \S+", done.stdout, re.MULTILINE)
        assert bool(checked) != bool(skipped), pair
        assert checked is None or int(checked.group(1)) >= 5
        assert row.backend != "torch" or checked
        assert re.search(rf"^(SKIPPED graph: {pair}: \S+|passed  {pair}: replay)", done.stdout, re.MULTILINE)


def test_rows_are_written_and_copied(dry):
    _, results, out = dry
    (table,) = results.glob("*.csv")
    rows = read(table)
    assert {row["benchmark"] for row in rows} == {*ops.OPS, "main_job", "score_cost", "rest_cost", "lfpr_cost"}
    job = {(row["case"], row["provider"], row["metric"]) for row in rows if row["benchmark"] == "main_job"}
    for label in ("fp32", "bf16"):
        assert (f"random-bert-tiny {label} 32x32", "pruned", "times as fast as dense") in job
        assert (f"random-bert-tiny {label}", "this checkpoint", "cosine") in job
    assert (out / table.name).read_bytes() == table.read_bytes()


def test_a_dry_run_of_its_own_writes_no_rows(monkeypatch):
    seen = []
    monkeypatch.setattr(bench.runpy, "run_path", lambda *_, **__: seen.append(sys.argv[1:]))
    bench.run(Path("some.py"), SETTINGS)
    bench.run(Path("some.py"), replace(SETTINGS, results="there"), "--tiny")
    assert seen == [["--device", "cpu", "--dry"], ["--device", "cpu", "--results", "there", "--tiny"]]


def reference(*args):
    return ops.OPS["prod_reduce"].candidates[-1].run(*args)


calls = []


def restless(*args):
    calls.append(args)
    return reference(*args) * (1 + 1e-7 * (len(calls) % 2))


def batch_dependent(*args):
    return reference(*args) * (1 + 1e-7 * (args[0].shape[0] == 2))


def without_gradient_formula(*args):
    raise RuntimeError("kernel failed\nlong story")


@pytest.mark.parametrize(
    ("run", "check", "reason"),
    [
        (lambda *args: reference(*args) * 1.001, "float64", r"\d+ of \d+ cases: sample 0: error"),
        (lambda *args: torch.empty_like(reference(*args)), "float64", "not finite"),
        (lambda x, y, *rest: reference(x.double(), y.double(), *rest).float() + (x.shape[1] == 5), "float64", "1"),
        (restless, "same bits again", "elements differ"),
        (batch_dependent, "same bits in any batch", r"other bits in ways \[1.*\] of 4"),
        (without_gradient_formula, "float64", "RuntimeError: kernel failed$"),
    ],
    ids=["wrong", "unwritten", "wrong in one case", "restless", "batch dependent", "raises"],
)
def test_a_broken_kernel_fails(run, check, reason, monkeypatch):
    op = ops.OPS["prod_reduce"]
    broken = ops.Candidate("cpp", ("cpu",), run)
    monkeypatch.setattr(op, "candidates", (broken, op.candidates[-1]))
    units = ops_section.units(SETTINGS)
    failed = {c.name: c for c in _all(units["prod_reduce cpp"]) if c.status == "failed"}
    assert re.search(reason, failed[f"prod_reduce cpp: {check}"].detail), failed
    assert all(c.status == "passed" for c in units["prod_reduce torch"]())
    report = {"ops": (list(failed.values()), 1.0)}
    assert f"FAILED ops: prod_reduce cpp: {check}" in gpu_check.summary(report, 1.0)


def _all(unit):
    """The checks up to an exception, which the worker would report."""
    checks = []
    try:
        for check in unit():
            checks.append(check)
    except RuntimeError as error:
        checks.append(Check("raised", "failed", str(error)))
    return checks


def test_wrong_gradients_fail(monkeypatch):
    op = ops.OPS["prod_reduce"]
    copied = lambda *args: torch.empty_like(reference(*args)).copy_(reference(*args))  # noqa: E731
    monkeypatch.setattr(op, "candidates", (ops.Candidate("cpp", ("cpu",), copied), op.candidates[-1]))
    right = ladder.gradients
    wrong = lambda f, args: tuple(g * 1.01 if f is not op.candidates[-1].run else g for g in right(f, args))  # noqa: E731
    monkeypatch.setattr(ladder, "gradients", wrong)
    failed = [c.name for c in ops_section.units(SETTINGS)["prod_reduce cpp"]() if c.status == "failed"]
    assert failed == ["prod_reduce cpp: gradients"]


WORKER = """
import json, os, sys, time
order = json.loads(sys.argv[1])
log = open(order["log"], "w", buffering=1)
tell = lambda **event: log.write(json.dumps(event) + "\\n")
if order["module"] == "early":
    sys.exit("no such thing")
units = order["module"].split(",")
tell(units=units)
for unit in units:
    if unit in order["done"]:
        continue
    tell(started=unit)
    if unit == "abort":
        print("illegal memory access", file=sys.stderr, flush=True)
        os.abort()
    if unit == "hang":
        time.sleep(60)
    tell(check={"name": unit, "status": "failed" if unit == "poisons" else "passed"})
    tell(finished=unit)
    if unit == "poisons":
        sys.exit(1)
    if unit == "half":
        log.write('{"check": {"na')
        log.flush()
        os._exit(3)
"""


@pytest.fixture
def outcome(tmp_path):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)

    def run(module, limit_s=60.0):
        settings = replace(SETTINGS, scratch=str(tmp_path))
        checks = run_section(Section("some", module, limit_s), settings, worker, os.environ)
        return [(c.name, c.status) for c in checks], [c.detail for c in checks]

    return run


def test_a_crash_takes_one_unit(outcome):
    checks, details = outcome("a,abort,b")
    assert checks == [("a", "passed"), ("abort", "failed"), ("b", "passed")]
    assert details[1] == "the process was ended by SIGABRT; illegal memory access"


def test_a_process_that_ends_between_units_is_started_again(outcome):
    assert outcome("poisons,half,c")[0] == [("poisons", "failed"), ("half", "passed"), ("c", "passed")]


def test_a_bad_end_after_the_last_unit_fails(outcome):
    checks, details = outcome("a,half")
    assert checks == [("a", "passed"), ("half", "passed"), ("some", "failed")]
    assert details[2].startswith("the process ended with exit code 3")


def test_a_worker_that_does_not_begin_fails_the_section(outcome):
    checks, details = outcome("early")
    assert checks == [("some", "failed")]
    assert details == ["the process ended with exit code 1; no such thing"]


def test_a_timeout_fails_its_unit_and_skips_the_rest(outcome):
    checks, details = outcome("a,hang,b", limit_s=2.0)
    assert checks == [("a", "passed"), ("hang", "failed"), ("b", "skipped")]
    assert details[1].startswith("not finished")
    assert details[2] == "the section's 2 s are over"


def test_other_sections_run_after_a_crash(tmp_path, monkeypatch, capsys):
    section = (
        "import os\nfrom benchmarks.gpu.record import Check\n"
        "def units(settings):\n    return {'boom': os.abort, 'after': lambda: [Check('after', 'passed')]}\n"
    )
    (tmp_path / "crashing_section.py").write_text(section)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sections = Section("crashing", "crashing_section", 60), *(s for s in gpu_check.SECTIONS if s.name == "sanitizer")
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    assert gpu_check.main(["--dry", "--no-build"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED crashing: boom: the process was ended by SIGABRT" in printed
    assert re.search(r"^crashing +1 +1 +0 ", printed, re.MULTILINE)
    assert re.search(r"^sanitizer +0 +0 +3 ", printed, re.MULTILINE)


def test_installs_with_pip_where_the_kernels_are_imported_from(tmp_path):
    site = tmp_path / "site"
    check = install.pip_install(site, "none", install.environment(tmp_path, site, dry=True))
    assert check.status == "passed", check
    assert check.detail == "no libraries"
    assert (site / "pyprune/triton_kernels/prod_reduce.py").exists()
    assert not (site / "triton_kernels").exists()


def test_a_failing_build_is_reported_and_the_rest_goes_on(tmp_path):
    site = tmp_path / "site"
    environment = install.environment(tmp_path, site, dry=True) | {"CXX": "no-such-compiler"}
    (check,) = install.install(site, ("cpu",), environment)
    assert check.status == "failed"
    assert "cannot build without a C++ compiler" in check.detail
    assert (site / "pyprune/triton_kernels/prod_reduce.py").exists()
    assert not list(site.rglob("*.so"))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("/usr/bin/python3: No module named pip\n", "has no pip"),
        (
            "ERROR: Could not ...\npip._vendor.BackendUnavailable: Cannot import 'setuptools.build_meta'",
            "no setuptools",
        ),
        (
            "error: subprocess-exited\nprod_reduce.cu(3): error: no such type\n1 error\n[end of output]",
            "prod_reduce.cu(3): error: no",
        ),
        ("nothing telling\n", "nothing telling"),
        ("", "no output"),
    ],
)
def test_the_cause_of_a_failed_build(output, reason):
    assert reason in install.cause(output)


def test_missing_libraries_fail_only_where_they_are_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "LIBRARIES", {"cuda": "_C_none.abi3.so"})
    for needs_cuda, status in ((True, "failed"), (False, "skipped")):
        (check,) = install.prebuilt(tmp_path / status, needs_cuda)
        assert (check.status, "PYPRUNE_BUILD=cuda" in check.detail) == (status, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(capsys):
    assert gpu_check.main([]) == 2
    assert "finds no CUDA device; --dry runs on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--only", "ops,speed"], ["--model", "no-such-folder"]])
def test_bad_arguments(arguments):
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--dry", *arguments])
    assert caught.value.code == 2


def test_architectures():
    assert [gpu_check.architecture(*c) for c in ((8, 0), (8, 9), (9, 0))] == ["8.0", "8.9", "9.0a"]


SUMMARY = "========= ERROR SUMMARY: {} errors\n"


@pytest.mark.parametrize(
    ("code", "output", "status", "detail"),
    [
        (0, SUMMARY.format(0), "passed", "ERROR SUMMARY: 0 errors"),
        (
            sanitizer.FOUND,
            "========= Invalid __global__ read\n" + SUMMARY.format(2),
            "failed",
            "Invalid __global__ read",
        ),
        (sanitizer.FOUND, "========= Error: Device not supported\n" + SUMMARY.format(1), "skipped", "not supported"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "passed", "0 hazards"),
        (1, "Traceback\nImportError: x\n", "failed", "exit code 1: ImportError: x"),
    ],
)
def test_verdicts_of_the_sanitizer(code, output, status, detail):
    check = sanitizer.verdict("memcheck", code, output, 1.0)
    assert check.status == status
    assert detail in check.detail


@pytest.mark.parametrize("baked_in", [False, True])
def test_replay_compares_with_new_values(baked_in, monkeypatch):
    """The section's own logic, on a stand-in for CUDA graphs: replay computes again, or (baked in) gives old values."""
    op = ops.OPS["prod_reduce"]
    candidate = ops.Candidate("triton", ("cuda",), reference)

    class Graph:
        def replay(self):
            for output, value in zip(self.outputs, self.old if baked_in else op_outputs(self.args), strict=True):
                output.copy_(value)

    def op_outputs(args):
        return (reference(*args),)

    def call(op, candidate, args):
        outputs = op_outputs(args)
        if current:
            current[0].args, current[0].outputs, current[0].old = args, outputs, [o.clone() for o in outputs]
        return outputs

    current = []

    @contextmanager
    def capture(made):
        current.append(made)
        yield
        current.pop()

    class Stream:
        def wait_stream(self, other):
            pass

    fakes = {"Stream": Stream, "current_stream": Stream, "stream": nullcontext, "CUDAGraph": Graph, "graph": capture}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(graph, "call", call)
    (check,) = graph.check_pair(op, candidate, "cpu", SETTINGS)
    assert check.status == ("failed" if baked_in else "passed"), check


def test_the_main_job_is_judged():
    report = {
        "checks": [{"name": "masked = sliced", "difference": 1.0, "allowed": 0.0, "equal": False}],
        "blocks": {"flops": [100.0, 61.0]},
        "fidelity": {"this checkpoint": {"cosine": float("nan")}},
    }
    report = json.loads(json.dumps(report))
    found = {c.name: c.status for c in main_job.judge("fp32", report)}
    assert found == dict.fromkeys(("fp32: masked = sliced", "fp32: budget", "fp32: fidelity"), "failed")


def test_benchmarks_of_all_ops_take_turns():
    units = bench.units(replace(SETTINGS, tiny=False))
    turns = [name.split()[0] for name in units]
    assert turns[: len(ops.OPS)] == list(ops.OPS)
    assert len(units) == sum(len(list(bench.cases(op, "cpu"))) for op in ops.OPS.values())
    assert next(name for name in units if name.startswith("prod_reduce ")).endswith("bf16")


def test_a_unit_that_does_not_fit_is_not_begun(tmp_path):
    """Run by the real worker, with the package laid out as an installation has it."""
    site, log = tmp_path / "site", tmp_path / "log.jsonl"
    site.mkdir()
    install.lay_out(site, libraries=False)
    (site / "benchmarks").symlink_to(ROOT / "benchmarks")
    (site / "brief_section.py").write_text("LEAST_S = 5\ndef units(settings):\n    return {'never': lambda: 1 / 0}\n")
    settings = {"device": "cpu", "tiny": True, "scratch": str(tmp_path)}
    order = {"module": "brief_section", "log": str(log), "done": [], "settings": settings, "seconds": 4}
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, str(site / "benchmarks/gpu/worker.py"), json.dumps(order)]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert events[2]["check"]["status"] == "skipped"
    assert events[3] == {"finished": "never"}


def test_precompiling_launches_nothing():
    code = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction
from benchmarks.gpu import precompile
from benchmarks.gpu.record import Settings

class Driver:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

def compile(self, key, signature, device, constexprs, options, attrs, warmup):
    assert warmup
    print("compiled", self.__name__)
    self.device_caches[device][0][key] = object()

driver.set_active(Driver())
JITFunction._do_compile = compile
torch.version.cuda = "13.0"  # what makes Triton's candidates available
for share in range(2):
    precompile.compile_share(Settings(device="cpu", tiny=True, scratch=""), share, 2)
"""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout
    names = done.stdout.split()[1::2]
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "triton_kernels").glob("*.py"))
    assert set(names) == set(re.findall(r"^def (\w+_kernel)\(", sources, re.MULTILINE))
    assert len(names) > 200
