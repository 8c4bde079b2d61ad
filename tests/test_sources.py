import sys
import textwrap

import pytest
import torch
from torch.testing import assert_close

from abridged import sources
from abridged.errors import InputError
from abridged.sources import call, load_data, load_for_deploy, load_model, users_line
from abridged.weights import save


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A stranger's directory with one module; what was imported from it is forgotten afterwards."""
    (tmp_path / "strangers_net.py").write_text(
        textwrap.dedent("""\
        import torch
        net = torch.nn.Linear(4, 2)
        Net = lambda: torch.nn.Linear(4, 2)
        number = 3
        def make():
            return torch.nn.Linear(4, 2)
        def broken():
            return 1 / 0
        def nothing():
            return None
        """)
    )
    (tmp_path / "strangers_typo.py").write_text("def f(:\n")
    (tmp_path / "strangers_need.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    for name in [name for name in sys.modules if name.startswith("strangers_")]:
        del sys.modules[name]


@pytest.mark.parametrize("spec", ["strangers_net:make", "strangers_net:Net", "strangers_net:net"])
def test_a_callable_a_class_or_a_ready_module(project, spec):
    assert isinstance(load_model(spec), torch.nn.Module)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere_at_all:make", "no module 'nowhere_at_all' in the current directory"),
        ("strangers_net:mke", "has no 'mke'; did you mean 'make'"),
        ("strangers_net:broken", r"raised ZeroDivisionError: division by zero \(strangers_net.py:8\)"),
        ("strangers_net:nothing", "must give a torch.nn.Module, not NoneType"),
        ("strangers_net:number", "must give a torch.nn.Module, not int"),
        ("strangers_typo:f", r"raised SyntaxError: .*\(strangers_typo.py:1\)"),
        ("strangers_need:f", "raised ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("just_a_name", "must be package.module:callable, torchvision:NAME, timm:NAME"),
        ("net.pt2", "cannot be trained"),
    ],
)
def test_a_wrong_model_is_one_line(project, spec, words):
    with pytest.raises(InputError, match=words) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


def test_weights_go_into_the_model(project):
    wanted = torch.nn.Linear(4, 2)
    save(wanted, project / "w.safetensors")
    assert torch.equal(load_model("strangers_net:make", project / "w.safetensors").weight, wanted.weight)


def test_data_by_name_and_by_callable(project):
    (project / "strangers_data.py").write_text(
        "import torch, abridged as ab\n"
        "def make():\n"
        "    x, y = torch.randn(30, 4), torch.randint(0, 2, (30,))\n"
        "    return ab.Data(train=(x, y), val=(x, y))\n"
    )
    assert load_data("strangers_data:make").example_input().shape == (1, 4)
    with pytest.raises(InputError, match="unknown data 'digitz'; did you mean 'digits'"):
        load_data("digitz")
    with pytest.raises(InputError, match=r"must give an abridged\.Data, not int"):
        load_data("strangers_net:number")


def test_what_goes_in_when_a_model_is_deployed(project, torchvision_models):
    model, example = load_for_deploy("strangers_net:make", shapes=["2x4"])
    assert example[0].shape == (2, 4)
    assert model(example[0]).shape == (2, 2)
    assert load_for_deploy("torchvision:squeezenet1_1")[1][0].shape == (1, 3, 224, 224)
    with pytest.raises(InputError, match="say what goes in"):
        load_for_deploy("strangers_net:make")
    for text in ("2xx4", "abc", "2x4:flot", "2x4:nn"):
        with pytest.raises(InputError, match="give sizes"):
            load_for_deploy("strangers_net:make", shapes=[text])


def test_models_of_the_zoos(torchvision_models):
    assert sum(p.numel() for p in load_model("torchvision:squeezenet1_1").parameters()) == 1235496
    with pytest.raises(InputError, match="did you mean 'resnet50'"):
        load_model("torchvision:resnet5")


def test_weights_that_nobody_gave_are_the_same_in_every_process_and_said_to_be_random(
    project, torchvision_models, capsys
):
    first = load_model("torchvision:squeezenet1_1")
    said = capsys.readouterr().err
    assert said.startswith("torchvision:squeezenet1_1: its weights are random")
    assert "--weights FILE" in said
    assert said.count("\n") == 1
    torch.manual_seed(17)
    assert_close(load_model("torchvision:squeezenet1_1").state_dict(), first.state_dict(), rtol=0, atol=0)
    other = load_model("torchvision:squeezenet1_1", seed=1)
    assert not torch.equal(other.classifier[1].weight, first.classifier[1].weight)
    capsys.readouterr()
    save(first, project / "w.safetensors")
    load_model("torchvision:squeezenet1_1", project / "w.safetensors")
    load_model("strangers_net:make")
    assert capsys.readouterr().err == ""


def test_models_of_timm(torchvision_models):
    pytest.importorskip("timm", reason="timm is not installed")
    model, example = load_for_deploy("timm:resnet18")
    assert model.eval()(example[0]).shape == (1, 1000)
    with pytest.raises(InputError, match="timm has no model 'resnet180'"):
        load_model("timm:resnet180")


def test_a_line_of_ours_is_not_the_users():
    with pytest.raises(InputError) as caught:
        call("nothing", "model")
    assert users_line(caught.value).startswith(" (test_sources.py:")


def test_what_torchvision_itself_lacks_is_said(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'PIL'")

    monkeypatch.setattr(sources, "_torchvision_models", missing)
    with pytest.raises(InputError, match=r"pip install --no-deps torchvision pillow \(No module named 'PIL'\)"):
        load_model("torchvision:resnet18")
