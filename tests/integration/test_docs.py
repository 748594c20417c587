"""What the pages show runs as it stands.

The blocks of a page run in their order, in one empty folder and with one set of names, as a reader
would go through them: python as it is, of bash the lines that begin with `deepseek`. Above a block
may stand

- `<!-- not run: REASON -->`
- `<!-- fails: CODE -->`: it raises, or exits with, an error of this exit code, and the text block
  that comes next is what is then printed.
"""

import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import timm
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from deepseek.cli.main import run
from deepseek.config import (
    DataConfig,
    ModelConfig,
    MultiDataConfig,
    NoduleDataConfig,
    RunConfig,
    TableDataConfig,
    TextDataConfig,
    TrainerConfig,
    VolumeDataConfig,
)
from deepseek.config.parallel import ParallelConfig
from deepseek.errors import DeepSeekError
from deepseek.models import ARCHITECTURES, ModelEngine
from deepseek.trainer import LOGGERS, RUN_OUTPUTS, SCHEDULES, TASKS

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("DEEPSEEK_TEST_DATA", ROOT.parent / "shared" / "data"))
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
README, CHINESE_README = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [
    README,
    CHINESE_README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    *DOCS,
]
REGISTRIES = (ARCHITECTURES, LOGGERS, RUN_OUTPUTS, SCHEDULES, TASKS)
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]+?) -->\n)?^```(?P<language>\S*)[^\n]*\n(?P<body>.*?)^```$",
    re.M | re.S,
)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPSEEK_DEBUG", raising=False)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data_home"))
    handler = signal.getsignal(signal.SIGTERM)
    for registry in REGISTRIES:  # what a page adds goes with it
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield
    signal.signal(signal.SIGTERM, handler)
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)  # pytest keeps the folders of three runs


def run_python(body, namespace, where):
    exec(compile(body, where, "exec"), namespace)


def run_bash(body, short=False):
    """Run the commands; `short` trains for two epochs where a command names no number."""
    code = 0
    for line in body.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["deepseek"]:
            continue
        assert code == 0, f"only the last command may fail, before: {line}"
        assert not {"|", ">", "&&", ";"} & set(words), f"shell syntax is not run: {line}"
        if short and words[1] == "train" and not any("epochs=" in word for word in words):
            words.append("trainer.epochs=2")
        code = run(words[1:])
    return code


def run_failing(block, namespace, where, capsys):
    """Run a block that fails; return its exit code and what a user sees."""
    capsys.readouterr()
    if block["language"] == "bash":
        code = run_bash(block["body"])
        return code, capsys.readouterr().err
    with pytest.raises(DeepSeekError) as caught:
        run_python(block["body"], namespace, where)
    return caught.value.exit_code, f"{type(caught.value).__name__}: {caught.value}"


def squeeze(text):
    return [line.rstrip() for line in text.strip().splitlines()]


def run_page(page, capsys, short=False):
    text = page.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        mark = block["mark"] or ""
        where = f"{page.name}:{text[: block.start('body')].count(chr(10)) + 1}"
        if block["language"] not in ("python", "bash") or mark.startswith("not run: "):
            continue
        if mark.startswith("fails: "):
            code, printed = run_failing(block, namespace, where, capsys)
            assert code == int(mark.removeprefix("fails: ")), where
            assert blocks[number + 1]["language"] == "text", where
            assert squeeze(printed) == squeeze(blocks[number + 1]["body"]), where
        elif block["language"] == "python":
            run_python(block["body"], namespace, where)
        else:
            assert run_bash(block["body"], short) == 0, f"{where}\n{capsys.readouterr().err}"


@pytest.mark.filterwarnings("ignore:more than 100 centres")  # the tutorial says so
@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.relative_to(ROOT / "docs").as_posix())
def test_blocks_of_a_page_run_in_their_order(page, capsys):
    run_page(page, capsys)


@pytest.mark.long
@pytest.mark.parametrize("page", ["tutorials/images.md", "zh/images.md"])
def test_tutorials_on_pictures_run_on_photographs(page, tmp_path, capsys):
    if not (DATA / "flowers5").exists():
        pytest.skip(f"no photographs at {DATA}; set DEEPSEEK_TEST_DATA")
    for kind in (path for path in (DATA / "flowers5").iterdir() if path.is_dir()):
        (tmp_path / "flowers" / kind.name).mkdir(parents=True)
        for photograph in sorted(kind.iterdir())[:20]:
            (tmp_path / "flowers" / kind.name / photograph.name).symlink_to(photograph.resolve())
    run_page(ROOT / "docs" / page, capsys)


def test_every_picture_of_a_page_is_there_and_small():
    pictures = [
        page.parent / name
        for page in PAGES
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
        if not name.startswith("https://")
    ]
    assert pictures
    assert all(picture.stat().st_size <= 60 * 1024 for picture in pictures)


def test_blocks_of_the_readme_run_in_few_epochs(capsys):
    run_page(README, capsys, short=True)


@pytest.mark.long
def test_blocks_of_the_readme_run_as_they_stand(capsys):
    run_page(README, capsys)


def test_both_readmes_show_the_same_commands_and_the_same_python():
    """So that running one of them is enough."""

    def shown(page, language):
        blocks = BLOCK.finditer(page.read_text(encoding="utf-8"))
        bodies = "".join(block["body"] for block in blocks if block["language"] == language)
        lines = (line.partition("#")[0].rstrip() for line in bodies.splitlines())
        return [line for line in lines if line and not line.startswith("export ")]

    for language in ("python", "bash"):
        assert shown(README, language) == shown(CHINESE_README, language)


def test_every_address_in_an_error_message_is_a_heading():
    headings = anchors(ROOT / "docs" / "errors.md")
    used = set()
    for file in (ROOT / "src").rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        used |= set(re.findall(r"docs/errors\.md#([\w-]+)", source))
        used |= set(re.findall(r'^    anchor = "([\w-]+)"$', source, re.M))
    assert used >= {"config", "missing-extra", "data", "checkpoint", "diverged", "preempted"}
    assert used <= headings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_and_headings_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def anchors(page):
    """Return the addresses of headings, by the rule that GitHub and MyST share."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("prefix", "settings"),
    [
        ("", RunConfig),
        ("data.", DataConfig),
        ("data.", TextDataConfig),
        ("data.", VolumeDataConfig),
        ("data.", MultiDataConfig),
        ("data.", TableDataConfig),
        ("data.", NoduleDataConfig),
        ("model.", ModelConfig),
        ("trainer.", TrainerConfig),
        ("trainer.parallel.", ParallelConfig),
    ],
)
def test_tables_of_settings_are_complete_and_have_the_defaults(prefix, settings):
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    pictures, _, others = page.partition("## data, of text\n")
    text, _, others = others.partition("## data, of volumes\n")
    volumes, _, others = others.partition("## data, of nodule cubes\n")
    nodules, _, others = others.partition("## data, of several tasks\n")
    tasks, _, tables = others.partition("## data, of tables\n")
    parts = {
        DataConfig: pictures, TextDataConfig: text, VolumeDataConfig: volumes,
        NoduleDataConfig: nodules, MultiDataConfig: tasks, TableDataConfig: tables,
    }  # fmt: skip
    page = parts.get(settings, page)
    found = re.findall(rf"^\| `{re.escape(prefix)}(\w+)` \| (.+?) \| (.+) \|$", page, re.M)
    rows = {name: (shown, meaning) for name, shown, meaning in found}
    fields = settings.model_fields
    sections = {"data", "model", "trainer"} if settings is RunConfig else set()
    assert rows.keys() == fields.keys() - sections
    for name, (shown, meaning) in rows.items():
        words = {f"`{each}`" for each in choices(fields[name].annotation)}
        assert [word for word in words if word not in shown + meaning] == [], name
        if fields[name].is_required():
            assert shown == "required"
        else:
            given = YAML(typ="safe").load(shown.strip("`"))
            if name == "parallel":
                given = ParallelConfig.model_validate(given).model_dump()
                assert given == fields[name].default.model_dump()
                continue
            assert given == json.loads(
                json.dumps(fields[name].get_default(call_default_factory=True))
            ), name


def choices(annotation):
    """Return the words that a setting takes."""
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if isinstance(each, str)]
    return [each for part in get_args(annotation) for each in choices(part)]


def test_readmes_link_to_each_other():
    assert "(README.zh-CN.md)" in README.read_text(encoding="utf-8")
    assert "(README.md)" in CHINESE_README.read_text(encoding="utf-8")


# What a user writes: the contract of the architecture, word for word.
RECIPES = """\
from deepseek import DataLoader, ModelEngine, Optimizer
data_loader = DataLoader(input_format='image', batch_size=32)
model = ModelEngine(architecture='resnet50', pretrained=True)
optimizer = Optimizer(algorithm='adam', learning_rate=0.001)
"""
VISION_TRANSFORMER = """\
from deepseek.datasets import ImageDataset
from deepseek.models import VisionTransformer
from deepseek.trainer import Trainer
train_data = ImageDataset(path='/data/train', transform='resize_224')
val_data = ImageDataset(path='/data/val', transform='resize_224')
model = VisionTransformer(image_size=224, patch_size=16, num_layers=12, dim=768, heads=12, channels=3)
trainer = Trainer(model=model, train_data=train_data, val_data=val_data, batch_size=64, epochs=50,
                  optimizer='adamw', lr=0.001)
trainer.fit()
"""  # noqa: E501
BERT = """\
from deepseek.convert import pytorch_to_deepseek
model_pt = torch.load('bert_base.pt')          # a state dict, or a whole module
model_ds = pytorch_to_deepseek(model_pt)
model_ds.save('bert_base_ds.bin')
"""


def make_pictures(folder):
    """Write two pictures in each of two classes."""
    for label, color in enumerate([(200, 30, 30), (30, 30, 200)]):
        (folder / f"class_{label}").mkdir(parents=True)
        for number in range(2):
            size = (48 + 16 * number, 40)
            Image.new("RGB", size, color).save(folder / f"class_{label}" / f"{number}.png")


def run_with_paths(block, tmp_path):
    make_pictures(tmp_path / "data" / "train")
    make_pictures(tmp_path / "data" / "val")
    assert block.count("'/data/") == 2
    namespace = {}
    run_python(block.replace("'/data/", f"'{tmp_path}/data/"), namespace, "contract")
    return namespace["trainer"]


def test_recipes_of_the_contract(tmp_path, monkeypatch):
    weights = tmp_path / "weights"
    weights.mkdir()
    published = timm.create_model("resnet50")
    save_file(published.state_dict(), weights / "resnet50.safetensors")
    monkeypatch.setenv("DEEPSEEK_WEIGHTS", str(weights))
    namespace = {}
    run_python(RECIPES, namespace, "contract")
    assert not namespace["data_loader"].is_bound
    assert namespace["optimizer"].learning_rate == 0.001
    own = namespace["model"].module.state_dict()
    assert torch.equal(own["layer4.2.conv3.weight"], published.layer4[2].conv3.weight)
    make_pictures(tmp_path / "pictures")
    assert len(namespace["data_loader"].load(tmp_path / "pictures")) == 1


def test_vision_transformer_of_the_contract_in_one_epoch(tmp_path):
    """The block of the contract as it stands, but for its 50 epochs."""
    trainer = run_with_paths(VISION_TRANSFORMER.replace("epochs=50", "epochs=1"), tmp_path)
    assert trainer.step == 1
    assert trainer.model.spec.class_names == ("class_0", "class_1")
    assert (trainer.folder.path / "report.html").is_file()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_vision_transformer_of_the_contract(tmp_path):
    trainer = run_with_paths(VISION_TRANSFORMER, tmp_path)
    assert trainer.step == 50
    assert (trainer.folder.path / "report.html").is_file()


def test_conversion_of_the_contract(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=512,
    )  # fmt: skip
    torch.save(transformers.BertModel(config).state_dict(), "bert_base.pt")
    run_python(BERT, {"torch": torch}, "contract")
    assert ModelEngine.load("bert_base_ds.bin").architecture == "encoder"
