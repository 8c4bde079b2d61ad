import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abridged import recipe as recipes
from abridged.errors import InputError
from abridged.recipe import Budget, Distill, Finetune, Prune, Train


def complaint(text: str) -> str:
    with pytest.raises(InputError) as caught:
        recipes.from_yaml(text, "r.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", recipes.named())
def test_every_named_recipe_loads_and_says_what_it_is(name):
    recipe = recipes.load(name)
    assert recipe.name == name
    assert recipe.compression
    assert recipes.named()[name].endswith(".")


def test_a_recipe_survives_as_plain_data():
    recipe = recipes.load("from-scratch")
    assert recipes.load(recipe.plain()) == recipe


def test_the_parts_of_a_recipe():
    recipe = recipes.load(
        [{"train": {"epochs": 1}}, {"prune": {"sparsity": 0.5}}, "finetune", {"deploy": {"threads": 1}}]
    )
    assert isinstance(recipe.train, Train)
    assert [type(step) for step in recipe.compression] == [Prune, Finetune]
    assert recipe.deploy.threads == 1
    assert recipes.load([{"distill": None}]).deploy.target == "onnxruntime"


def test_what_the_caller_says_replaces_what_the_recipe_says():
    recipe = recipes.load("default").replaced(budget={"bytes": 10}, target="openvino", threads=1, control=False)
    assert (recipe.budget.bytes, recipe.deploy.target, recipe.deploy.threads, recipe.control) == (
        10,
        "openvino",
        1,
        False,
    )
    assert recipe.replaced() == recipe
    assert recipe.replaced(budget=Budget(latency_ms=2.0)).budget == Budget(bytes=10, latency_ms=2.0)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("steps:\n - prune: {sparsty: 0.9}", 2, "unknown key 'sparsty'; did you mean 'sparsity'"),
        ("steps:\n - prun: {}", 2, "unknown step 'prun'; did you mean 'prune'"),
        ("nme: x\nsteps:\n - prune: {sparsity: 0.9}", 1, "unknown key 'nme'; did you mean 'name'"),
        (
            "steps:\n - prune:\n    epochs: 1\n    sparsity: 1.9",
            4,
            "sparsity: input should be less than or equal to 1, not 1.9",
        ),
        ("steps:\n - prune: {sparsity: .nan}", 2, "sparsity"),
        ("steps:\n - prune: {sparsity: 0.5, lr: .inf}", 2, "lr"),
        ("steps:\n - prune:\n    sparsity: 0.9\n    teacher: dens", 4, "did you mean 'dense'"),
        (
            "steps:\n - prune:\n    sparsity: 0.9\n    optimizer: zzz",
            4,
            "must be one of 'adamw', 'adam', 'sgd', not 'zzz'",
        ),
        (
            "steps:\n - prune: {sparsity: 0.9, criterion: magnitud}",
            2,
            "unknown criterion 'magnitud'; did you mean 'magnitude'",
        ),
        (
            "steps:\n - factorize: {method: tuker, ratio: 0.5}",
            2,
            "line 2: method: unknown factorization method 'tuker'; did you mean 'tucker'",
        ),
        ("steps:\n - factorize: {method: [svd, tuker], ratio: 0.5}", 2, "did you mean 'tucker'"),
        ("steps:\n - distill: {loss: kdd}", 2, "did you mean 'kd'"),
        ("steps:\n - finetune\n - deploy: {target: onnx}", 3, "did you mean 'onnxruntime'"),
        ("steps:\n - prune: {}", 2, "exactly one of sparsity, threshold, keep"),
        ("steps:\n - prune: {sparsity: 0.5, epochs: 0}", 2, "prunes while training"),
        ("steps:\n - prune: {threshold: 0.1}", 2, "add schedule: one-shot"),
        ("steps:\n - prune: {keep: 5, allocation: uniform}", 2, "leave allocation at global"),
        ("steps:\n - prune: {pattern: 2:4}", 2, "write the pattern in quotes, such as pattern: '2:4'"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: chanel}", 2, "unknown pattern 'chanel'; did you mean 'channel'"),
        ("steps:\n - prune: {sparsity: 0.5, regrow: rigel}", 2, "did you mean 'rigl'"),
        ("steps:\n - prune: {sparsity: 0.5, regrow: {fracton: 0.2}}", 2, "'fracton'; did you mean 'fraction'"),
        ("steps:\n - prune: {sparsity: 0.5, regrow: {fraction: 2}}", 2, "fraction must be in (0, 1]"),
        ("steps:\n - prune: {sparsity: 0.5, regrow: rigl, schedule: cubic}", 2, "leave schedule out"),
        ("steps:\n - prune: {sparsity: 0.5, regrow: rigl, epochs: 0}", 2, "regrow exchanges weights while training"),
        ("steps:\n - prune: {sparsity: 0.5, of: mac}", 2, "must be one of 'weights', 'macs', not 'mac'"),
        ("steps:\n - prune: {sparsity: 0.5, allocation: {'*': 0.5}}", 2, "leave sparsity and the other amounts out"),
        ("steps:\n - prune:\n    allocation: {'*': 1.5}", 3, "'*' must have a sparsity from 0 to 1, not 1.5"),
        ("steps:\n - prune: {sparsity: 0.5, allocation: globl}", 2, "did you mean 'global'"),
        ("steps:\n - prune: {macs: 0.5, parameters: 0.5, pattern: channel}", 2, "exactly one of"),
        ("steps:\n - prune: {sparsity: 0.5}\n - shrink", 1, "put a prune with pattern: channel or heads before it"),
        ("steps:\n - shrink", 1, "put a prune with pattern: channel or heads before it"),
        ("steps:\n - prune: {sparsity: 0.5}\n - prune: {sparsity: 0.5, pattern: channel}", 1, "prune channels first"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: channel}\n - prune: {sparsity: 0.5}", 1, "put shrink between"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: heads}\n - factorize: {rank: 2}", 1, "put shrink between"),
        ("steps:\n - prune: {sparsity: true}", 2, "sparsity: input should be a valid number, not True"),
        ("steps:\n - prune: {sparsity: '0.9'}", 2, "sparsity: input should be a valid number, not '0.9'"),
        ("steps:\n - prune: {keep: true}", 2, "keep: input should be a valid integer, not True"),
        ("steps:\n - prune: {keep: '5'}", 2, "keep: input should be a valid integer, not '5'"),
        ("steps:\n - prune: {pattern: channel, macs: true}", 2, "macs: input should be a valid number, not True"),
        ("steps:\n - prune: {sparsity: 0.5, epochs: true}", 2, "epochs: input should be a valid integer, not True"),
        ("steps:\n - prune: {sparsity: 0.5, lr: true}", 2, "lr: input should be a valid number, not True"),
        ("steps:\n - prune: {sparsity: 0.5, ramp: true}", 2, "ramp: input should be a valid number, not True"),
        ("steps:\n - prune: {sparsity: 0.5, weight_decay: '1'}", 2, "weight_decay: input should be a valid number"),
        ("steps:\n - prune: {sparsity: 0.5, reestimate: 1}", 2, "reestimate: input should be a valid boolean, not 1"),
        ("steps:\n - factorize: {ratio: 0.5, measured: 'no'}", 2, "measured: input should be a valid boolean"),
        ("steps:\n - finetune\n - deploy: {threads: true}", 3, "threads: input should be a valid integer, not True"),
        ("budget: {bytes: true}\nsteps:\n - finetune", 1, "bytes: input should be a valid integer, not True"),
        ("budget: {accuracy_drop: true}\nsteps:\n - finetune", 1, "accuracy_drop: input should be a valid number"),
        ("control: 'no'\nsteps:\n - finetune", 1, "control: input should be a valid boolean"),
        ("steps:\n - prune: {sparsity: 0}", 2, "sparsity=0 removes nothing: ask for more"),
        ("steps:\n - prune: {sparsity: 0, pattern: channel}", 2, "sparsity=0.0 removes nothing"),
        ("steps:\n - prune: {macs: 1, pattern: channel}", 2, "macs=1.0 removes nothing"),
        ("steps:\n - prune: {allocation: {fc: 0}}", 2, "every sparsity in it is 0"),
        ("steps:\n - prune: {sparsity: 0.7, pattern: '2:4'}", 2, "pattern '2:4' removes 0.5 of the weights"),
        ("steps:\n - prune: {pattern: '2:4', allocation: global}", 2, "use allocation='uniform'"),
        ("steps:\n - prune: {pattern: '2:4', regrow: sparse-momentum}", 2, "layers cannot compete for the weights"),
        ("steps:\n - prune: {macs: 0.5}", 2, "macs does not go with pattern 'unstructured'"),
        ("steps:\n - prune: {parameters: 0.5, pattern: row}", 2, "parameters does not go with pattern 'row'"),
        ("steps:\n - prune: {sparsity: 0.5, exact: false}", 2, "exact does not go with pattern 'unstructured'"),
        ("steps:\n - prune: {sparsity: 0.5, round_to: 4}", 2, "round_to does not go with pattern 'unstructured'"),
        (
            "steps:\n - prune: {sparsity: 0.5, pattern: channel, schedule: cubic}",
            2,
            "schedule does not go with pattern",
        ),
        ("steps:\n - prune: {sparsity: 0.5, pattern: channel, regrow: rigl}", 2, "regrow does not go with pattern"),
        ("steps:\n - prune: {threshold: 0.5, pattern: channel}", 2, "threshold does not go with pattern"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: channel, of: macs}", 2, "of does not go with pattern"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: channel, every: 3}", 2, "every does not go with pattern"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: heads, allocation: erk}", 2, "'erk' does not work on channels"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: heads, allocation: sensitivity}", 2, "channels are coupled"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: channel, allocation: ddpg}", 2, "give macs= alone"),
        ("steps:\n - prune: {sparsity: 0.5, pattern: channel, criterion: movement}", 2, "learnt while training"),
        ("steps:\n - prune: {sparsity: 0.5, criterion: fpgm}", 2, "it needs pattern='row' or 'channel'"),
        ("steps:\n - prune: {sparsity: 0.5, criterion: bn-scale}", 2, "it needs pattern='channel'"),
        ("steps:\n - prune: {sparsity: 0.5, criterion: movement, schedule: one-shot}", 2, "learnt while training"),
        ("steps:\n - prune: {sparsity: 0.5, allocation: ddpg}", 2, "give sparsity and of='macs'"),
        (
            "steps:\n - prune: {sparsity: 0.5, of: macs, allocation: td3, criterion: synflow}",
            2,
            "a search tries hundreds",
        ),
        ("steps:\n - prune: {threshold: 0.1, schedule: one-shot, allocation: sensitivity}", 2, "nothing to allocate"),
        ("steps:\n - prune: {allocation: {fc: 0.5}, include: [fc]}", 2, "leave out include"),
        ("steps:\n - prune: {sparsity: 0.5, schedule: one-shot, every: 3}", 2, "leave out steps and every"),
        ("steps:\n - prune: {sparsity: 0.5, regrow: {drop: snip}}", 2, "a regrowth drops by weights alone"),
        ("steps: &a\n - *a", None, "alias of itself"),
        ("steps:\n - prune: 3", 2, "options must be a mapping"),
        ("steps:\n - {prune: {}, distill: {}}", 2, "step 1 must be one"),
        ("budget: {byte: 3}\nsteps:\n - finetune", 1, "did you mean 'bytes'"),
        ("steps:\n - prune:\n    sparsity: 0.5\n    sparsity: 0.9", 4, "'sparsity' is given twice, first in line 3"),
        ("steps:\n - finetune\nsteps:\n - distill", 3, "'steps' is given twice, first in line 1"),
        ("steps:\n - prune: {sparsity: 0.5, include: 3}", 2, "include: input should be a valid tuple, not 3"),
        ("steps:\n - train", 1, "no step compresses anything"),
        ("steps:\n - deploy\n - finetune", 1, "deploy must be the last step"),
        ("steps:\n - finetune\n - train", 1, "train makes the dense model"),
        ("steps: [", 1, "not YAML"),
        ("- 1", 1, "a recipe is a mapping"),
        ("steps: {}", 1, "a recipe is a mapping"),
        ("a: \x00", None, "not YAML"),
        ("", None, "a recipe is a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_the_nearest_right_word(text, line, words):
    message = complaint(text)
    assert words in message
    assert message.startswith("r.yaml: " if line is None else f"r.yaml, line {line}: ")


def test_whole_numbers_are_numbers_and_a_threshold_may_be_zero():
    (step,) = recipes.load([{"prune": {"sparsity": 1, "lr": 1, "weight_decay": 0, "epochs": np.int64(3)}}]).steps
    assert (step.sparsity, step.lr, step.weight_decay, step.epochs) == (1.0, 1.0, 0.0, 3)
    (step,) = recipes.load([{"prune": {"threshold": 0, "schedule": "one-shot"}}]).steps
    assert step.threshold == 0


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="did you mean 'default'"):
        recipes.load("defalt")
    with pytest.raises(InputError, match="cannot be read"):
        recipes.load(tmp_path / "none.yaml")
    (tmp_path / "r.yml").write_text("steps:\n  - prune: {threshold: 0.1, schedule: one-shot, epochs: 0}\n")
    assert recipes.load(tmp_path / "r.yml").compression[0].title == "Prune |w| < 0.1 (magnitude, global, one-shot)"


@pytest.mark.parametrize(
    ("options", "filled", "title"),
    [
        (
            {"sparsity": 0.95, "regrow": "rigl", "teacher": "none"},
            {"schedule": "one-shot", "allocation": "global"},
            "Prune 95 % (magnitude, global, regrow rigl)",
        ),
        (
            {"pattern": "2:4", "teacher": "none"},
            {"sparsity": 0.5, "allocation": "uniform", "schedule": "cubic"},
            "Prune 50 % (magnitude, 2:4, uniform, cubic)",
        ),
        (
            {"pattern": "channel", "macs": 0.5, "round_to": 8, "epochs": 0},
            {"schedule": "one-shot", "allocation": "uniform"},
            "Prune to 50 % of the MACs (magnitude, channel, uniform, one-shot)",
        ),
        (
            {"pattern": "heads", "parameters": 0.8, "epochs": 0},
            {"schedule": "one-shot"},
            "Prune to 80 % of the parameters (magnitude, heads, uniform, one-shot)",
        ),
        (
            {"allocation": {"conv*": 0.9, "fc": 0.5}, "teacher": "none"},
            {"sparsity": None},
            "Prune layer by layer (magnitude, per layer, cubic)",
        ),
        (
            {"sparsity": 0.9, "of": "macs", "schedule": "one-shot", "solver": "obs", "epochs": 0},
            {},
            "Prune 90 % of the MACs (magnitude, global, one-shot, obs)",
        ),
        ({"keep": 9, "allocation": "sensitivity", "teacher": "none"}, {}, "Prune all but 9 weights (magnitude, sensitivity, cubic)"),
    ],
)  # fmt: skip
def test_what_pruning_takes_for_granted(options, filled, title):
    recipe = recipes.load([{"prune": options}])
    step = recipe.compression[0]
    assert {name: getattr(step, name) for name in filled} == filled
    assert step.title == title
    assert recipes.load(recipe.plain()) == recipe


def test_one_name_may_stand_without_a_list():
    recipe = recipes.from_yaml(
        "steps:\n - prune: {sparsity: 0.5, pattern: channel, include: '*', exclude: fc}\n - shrink\n"
        " - factorize: {rank: 2, include: fc}\n - deploy: {beside: onnxruntime}",
        "r.yaml",
    )
    prune, _, factorize = recipe.compression
    assert (prune.include, prune.exclude, factorize.include) == (("*",), ("fc",), ("fc",))
    assert recipe.deploy.beside == ("onnxruntime",)
    assert recipes.load(recipe.plain()) == recipe


def test_orders_of_pruning_that_make_sense():
    channels = {"prune": {"sparsity": 0.5, "pattern": "channel", "epochs": 0}}
    weights = {"prune": {"sparsity": 0.5}}
    for steps in (
        [channels, "finetune", channels, "shrink", "distill", weights],
        [channels, "shrink", {"factorize": {"rank": 2}}, weights, weights],
        [{"factorize": {"rank": 2}}, channels, "shrink", channels, "shrink"],
    ):
        assert len(recipes.load(steps).compression) == len(steps)


def test_titles_are_for_people():
    assert Prune(sparsity=0.9, epochs=1).title == "Prune 90 % (magnitude, global, cubic, distilled)"
    assert Prune(keep=1000, teacher="none").title == "Prune all but 1,000 weights (magnitude, global, cubic)"
    assert Distill(epochs=2).title == "Distil from the dense network (2 epochs, T = 4)"
    assert Finetune(epochs=2).title == "Fine-tune (2 epochs)"
    assert recipes.Deploy().title == "Deploy to onnxruntime"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["steps", "prune", "sparsity", "name", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(PLAIN)
def test_no_data_makes_anything_but_a_recipe_or_one_line(data):
    given = data if isinstance(data, dict) else {"steps": [data]}
    message = ""
    try:
        recipes.load(given)
    except InputError as error:
        message = str(error)
    assert "\n" not in message
