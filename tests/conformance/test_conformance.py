"""The conformance set: it says of itself what is true, tells right from wrong, and MindPet and PEFT pass it."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conformance import run

CASES = {case["name"]: case for case in run.read_cases()}
SOUND = {name: case for name, case in CASES.items() if case["expect"] == "logits"}
DAMAGED = {name: case for name, case in CASES.items() if case["expect"] == "refuse"}
ADAPTED = {name: case for name, case in SOUND.items() if case["adapter"]}
FILES = {"adapter_config.json", "adapter_model.safetensors", "mindpet_projection.safetensors"}
MODEL_FILES = {"config.json", "model.safetensors", "generation_config.json"}
DATA = ("bases", "inputs", "adapters", "expected")
MOST_BYTES = 400_000


def outputs(capsys, *arguments):
    """Return the exit code of the runner and the results that it prints, by case."""
    code = run.main([*arguments, "--json"])
    return code, {one["case"]: one for one in json.loads(capsys.readouterr().out)}


def library(folder, body, head=""):
    """Write a library with this body of `logits`, and return its path, a new one: Python caches by name and second."""
    path = folder / f"library{len(list(folder.iterdir()))}.py"
    path.write_text(f"import json\nimport numpy as np\n{head}\ndef logits(base, adapter, inputs):\n    {body}\n")
    return str(path)


def names(folder):
    return {entry.name for entry in (run.ROOT / folder).iterdir() if entry.name != "__pycache__"}


def test_the_manifest_names_what_is_there_and_nothing_else_is():
    assert names("adapters") == {name for name, case in CASES.items() if case["adapter"]}
    assert names("bases") == {case["base"].removeprefix("bases/") for case in CASES.values()}
    assert names("inputs") == {case["inputs"].removeprefix("inputs/") for case in CASES.values()}
    assert names("expected") == {f"{name}.json" for name in SOUND}
    for name, case in CASES.items():
        assert case["adapter"] in (None, f"adapters/{name}")
        assert names(case["adapter"]) <= FILES if case["adapter"] else case["method"] == "none"
        assert names(case["base"]) <= MODEL_FILES
    assert names(".") == {*DATA, "making", "libraries", *("README.md", "README.zh-CN.md", "cases.json")} | {
        "generate.py",
        "run.py",
    }


def test_every_method_comes_from_both_libraries_and_the_set_is_small():
    for origin in ("peft", "mindpet"):
        found = {case["method"] for case in ADAPTED.values() if case["origin"].startswith(origin)}
        assert found == {"lora", "ia3", "vera", "prefix", "tokens"}
    sizes = [path.stat().st_size for part in DATA for path in (run.ROOT / part).rglob("*") if path.is_file()]
    assert sum(sizes) + (run.ROOT / "cases.json").stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", ADAPTED)
def test_each_adapter_changes_the_logits_by_far_more_than_the_tolerance(name):
    case = CASES[name]
    plain = CASES[case["base"].removeprefix("bases/")]
    expected, before = (run.read_logits(run.ROOT / one["expected"]) for one in (case, plain))
    change = np.abs(expected - before)[run.counted(expected, run.read_inputs(case))]
    assert np.isfinite(expected).all()
    assert change.max() > 500 * case["tolerance"]


# What MindPet says of each damaged adapter.
REASONS = {
    "damaged-cut-tensors": "cannot be read as safetensors",
    "damaged-cut-config": "this is not JSON",
    "damaged-header": "cannot be read as safetensors",
    "damaged-nan": "query.lora_B.weight holds NaN",
    "damaged-infinite": "query.lora_A.weight holds NaN or infinite numbers",
    "damaged-integers": "query.lora_A.weight is int32",
    "damaged-no-b": "query.lora_B.weight is missing",
    "damaged-no-head": "classifier.weight is missing, which modules_to_save",
    "damaged-no-layer": "there is no tensor for bert.encoder.layer.0.attention.self.key, which target_modules names",
    "damaged-more-layers": "attention.self.value, which target_modules does not name",
    "damaged-other-layer": "layer.7.attention.self.query, which the network has not",
    "damaged-prefix": "there is no tensor for bert.encoder.layer.0.attention.self.query",
    "damaged-adapter-name": "there is no tensor for bert.encoder.layer.0.attention.self.query",
    "damaged-turned": "query.lora_A.weight is [12, 3], and configuration and network ask for [3, 12]",
    "damaged-rank": "query.lora_A.weight is [3, 12], and configuration and network ask for [4, 12]",
    "damaged-changed-base": "init_lora_weights is 'pissa', which has changed the base too",
    "damaged-other-base": "there is no tensor for bert.encoder.layer.2.attention.self.query",
    "damaged-no-magnitude": "query.lora_magnitude_vector is missing",
    "damaged-turned-ia3": "key.ia3_l is [1, 12], and configuration and network ask for [12, 1]",
    "damaged-prompt": "prompt_embeddings is [4, 48], and adapter_config.json says [5, 48]",
    "damaged-token": "`token_indices`",
}


# One of each kind; a forward pass in PyNative mode takes half a second.
QUICK = [
    *("bert-12", "peft-lora", "peft-dora", "peft-ia3", "peft-vera", "peft-prefix", "peft-tokens", "mindpet-pissa"),
    *("mindpet-ptuning2-projected", "peft-gpt2-lora", "peft-llama-prefix"),
]


def check_mindpet(capsys, sound):
    """Let MindPet run sound cases."""
    code, results = outputs(capsys, "--library", "mindpet", *(f"--case={name}" for name in sound))
    assert [name for name, one in results.items() if not one["passed"]] == []
    assert (code, list(results)) == (0, list(sound))
    assert max(one["difference"] for one in results.values()) < 2e-5


def test_mindpet_computes_the_logits_of_each_method(capsys):
    check_mindpet(capsys, QUICK)


@pytest.mark.slow
def test_mindpet_computes_the_logits_of_the_other_cases(capsys):
    check_mindpet(capsys, SOUND.keys() - set(QUICK))


def test_mindpet_refuses_every_damaged_adapter_with_its_reason(capsys):
    code, results = outputs(capsys, "--library", "mindpet", *(f"--case={name}" for name in DAMAGED))
    assert code == 0
    assert results.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert (results[name]["outcome"], results[name]["passed"]) == ("refused", True)
        assert reason in results[name]["message"]


READ_PLAIN = """root = base.parents[1]
    rows = json.loads((root / "expected" / f"{base.name}.json").read_text())
    return np.array(rows["logits"])"""


def test_a_library_that_ignores_adapters_fails_all_of_them(tmp_path, capsys):
    code, results = outputs(capsys, "--library", library(tmp_path, READ_PLAIN, "REFUSALS = (ValueError,)"))
    assert code == 1
    assert {name for name, one in results.items() if one["passed"]} == SOUND.keys() - ADAPTED.keys()
    assert {results[name]["outcome"] for name in DAMAGED} == {"loaded"}


FAILURES = {
    "NaN": ("return np.full((4, 3), np.nan)", "the logits hold NaN"),
    "another shape": ("return np.zeros((3, 4))", "the logits have the shape [3, 4] and not [4, 3]"),
    "an error": ("raise KeyError('query')", "KeyError: 'query'"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_library_fails_a_case_by(tmp_path, capsys, name):
    body, message = FAILURES[name]
    code, results = outputs(capsys, "--library", library(tmp_path, body), "--case", "peft-lora")
    assert code == 1
    assert message in results["peft-lora"]["message"]
    assert results["peft-lora"]["passed"] is False


def test_only_the_logits_of_visible_tokens_count(tmp_path, capsys):
    hide = "\n    ".join(
        ("found = np.array(rows['logits'])", "found[inputs['attention_mask'] == 0] = np.nan", "return found")
    )
    body = READ_PLAIN.replace('return np.array(rows["logits"])', hide)
    code, results = outputs(capsys, "--library", library(tmp_path, body), "--case", "llama-12")
    assert (code, results["llama-12"]["passed"]) == (0, True)
    body = body.replace("== 0", "== 1")
    code, results = outputs(capsys, "--library", library(tmp_path, body), "--case", "llama-12")
    assert (code, results["llama-12"]["passed"]) == (1, False)


# What the library says of its refusals; what it does; the outcome, whether the case has passed, and the exit code.
REFUSALS = [
    ("REFUSALS = (ValueError,)", "raise ValueError('cut')", "refused", True, 0),
    ("REFUSALS = (ValueError,)", "raise ImportError('no torch')", "error", False, 1),
    ("REFUSALS = (ValueError,)", "return np.zeros((4, 3))", "loaded", False, 1),
    ("", "raise ImportError('no torch')", "refused", True, 0),
    ("", "return np.zeros((4, 3))", "loaded", None, 0),
]


@pytest.mark.parametrize(("head", "body", "outcome", "passed", "expected"), REFUSALS)
def test_a_damaged_adapter_is_judged_by_what_the_library_calls_a_refusal(
    tmp_path, capsys, head, body, outcome, passed, expected
):
    code, results = outputs(capsys, "--library", library(tmp_path, body, head), "--case", "damaged-nan")
    assert (results["damaged-nan"]["outcome"], results["damaged-nan"]["passed"], code) == (outcome, passed, expected)


def test_the_table_has_a_row_for_each_case_and_counts(tmp_path, capsys):
    arguments = ["--case", "bert-12", "--case", "peft-lora", "--case", "damaged-nan"]
    assert run.main(["--library", library(tmp_path, READ_PLAIN), *arguments]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["case", "bert-12", "peft-lora", "damaged-nan", "1"]
    assert lines[1].split()[3:] == ["of", "5e-05", "yes"]
    assert lines[2].split()[-1] == "NO"
    assert lines[-1] == "1 of 2 passed, 1 not judged"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--library", "jaxpet"], "give one of mindpet, peft, or the path"),
        (["--library", "mindpet", "--case", "peft-lorra"], "there is no case 'peft-lorra'"),
    ],
)
def test_a_wrong_command_line_is_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        run.main(arguments)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["peft-dora", "peft-llama-prefix"])
def test_mindpet_computes_the_same_in_graph_mode(name):
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    result = run.run_case(run.load_library("mindpet"), CASES[name])
    assert result.passed, result


@pytest.mark.slow
def test_peft_computes_every_case(capsys):
    code, results = outputs(capsys, "--library", "peft")
    assert [name for name in SOUND if not results[name]["passed"]] == []
    assert code == 0


# What a reader could overlook in a configuration.
OVERSIGHTS = {
    "peft-lora": {"lora_alpha": 3},
    "peft-rslora": {"use_rslora": False},
    "mindpet-rslora": {"use_rslora": False},
    "peft-dora": {"use_dora": False},
    "peft-lora-patterns": {"alpha_pattern": {}},
    "mindpet-pissa": {"alpha_pattern": {}},
    "peft-lora-layers": {"layers_to_transform": [0]},
    "peft-vera-key": {"projection_prng_key": 0},
    "peft-tokens": {"token_indices": [2, 9, 22]},
    "peft-llama-all-linear": {"use_rslora": False},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OVERSIGHTS)
def test_the_logits_show_what_a_reader_has_overlooked(tmp_path, name):
    case = CASES[name]
    shutil.copytree(run.ROOT / case["adapter"], tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | OVERSIGHTS[name]))
    found = run.load_library("peft").logits(run.ROOT / case["base"], tmp_path / "adapter", run.read_inputs(case))
    expected = run.read_logits(run.ROOT / case["expected"])
    assert np.abs(found - expected)[run.counted(expected, run.read_inputs(case))].max() > 100 * case["tolerance"]


# Made by a decomposition, or by a projection: the last digits, and the signs of singular vectors, are the processor's.
COMPUTED = {"mindpet-pissa", "mindpet-prefix", "mindpet-ptuning2-projected", "peft-prefix-projected"}


@pytest.mark.slow
def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "inputs").mkdir()
    command = [sys.executable, "-W", "ignore", str(run.ROOT / "generate.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["inputs"]


@pytest.mark.slow
def test_the_set_can_be_made_again_and_is_the_same(tmp_path):
    subprocess.run(
        [sys.executable, "-W", "ignore", str(run.ROOT / "generate.py"), "--folder", str(tmp_path)],
        check=True,
        timeout=600,
    )
    again = {case["name"]: case for case in json.loads((tmp_path / "cases.json").read_text("utf-8"))["cases"]}
    for case in (*again.values(), *CASES.values()):
        assert case.pop("origin")  # the versions of the libraries
    assert list(again.values()) == list(CASES.values())
    for part in ("bases", "inputs", "adapters"):
        kept, made = (
            {path.relative_to(root): path for path in (root / part).rglob("*")} for root in (run.ROOT, tmp_path)
        )
        assert kept.keys() == made.keys()
        changed = [
            str(path) for path in kept if kept[path].is_file() and kept[path].read_bytes() != made[path].read_bytes()
        ]
        assert [path for path in changed if not COMPUTED.intersection(path.split("/"))] == []
    for name in SOUND:
        found, expected = (run.read_logits(root / "expected" / f"{name}.json") for root in (tmp_path, run.ROOT))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
