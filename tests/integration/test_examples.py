"""The examples on text build their data and model, and take a step, on a few sentences.

Sizes are overridden, vocabularies only together: what does not fit in an example does not fit here.
"""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from deepseek.cli.main import run
from deepseek.config import MultiDataConfig, load_config
from deepseek.datasets import train_tokenizer
from deepseek.datasets.tokenizer_growth import grow_tokenizer
from deepseek.finance.datasets import Sentences
from deepseek.models import ModelEngine

ROOT = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted([*(ROOT / "finance").glob("*.yaml"), *(ROOT / "multitask").glob("*.yaml")])
BERT_VOCAB_SIZE = 30_522  # MiniLM's, too
VOCAB_SIZE = 100
SIZES = {"num_layers": 1, "dim": 32, "heads": 2, "hidden_dim": 32}
SMALL = [
    *(f"model.args.{name}={value}" for name, value in SIZES.items()),
    "trainer.max_steps=1", "trainer.batch_size=8", "trainer.num_workers=0", "trainer.device=cpu",
    "trainer.loggers=[]",
]  # fmt: skip
WORDS = (
    "bank", "sales", "profit", "quarter", "rates", "inflation", "shares", "market", "policy", "view"
)  # fmt: skip
MOVES = ("fell", "rose", "stayed")
TEXTS = [f"{WORDS[n % 10]} of {WORDS[n * n % 7]} {MOVES[n % 3]} by {n}.5 %" for n in range(90)]


@pytest.fixture
def material(tmp_path, monkeypatch):
    """What the examples name: texts, a tokenizer as large as MiniLM's, small encoders of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path / "cache"))
    for name in ("financial_phrasebank", "fomc", "minilm", "adapted"):
        Path(name).mkdir()
    tones = ("negative", "positive", "neutral")
    lines = [f"{text}@{tones[n % 3]}" for n, text in enumerate(TEXTS)]
    Path("financial_phrasebank/Sentences_AllAgree.txt").write_text("\n".join(lines))
    rows = [f"{text},{WORDS[n % 10]},{n % 3 / 2}" for n, text in enumerate(TEXTS)]
    Path("fiqa.csv").write_text("\n".join(["text,target,score", *rows]))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), "fomc/fomc_corpus.parquet")
    stances = ("dovish", "hawkish", "neutral")
    labels = tuple(n % 3 for n in range(len(TEXTS)))
    Sentences(tuple(TEXTS), labels, stances, "").save("fomc_train.jsonl")
    made = train_tokenizer(TEXTS, "wordpiece", VOCAB_SIZE)
    filled = grow_tokenizer(made, [], reserve=BERT_VOCAB_SIZE - made.vocab_size).tokenizer
    for folder, weights in (("minilm", "minilm.bin"), ("adapted", "adapted/task.bin")):
        filled.save(folder)
        ModelEngine("encoder", vocab_size=BERT_VOCAB_SIZE, context_length=512, **SIZES).save(
            weights
        )


def overrides(path: Path) -> list[str]:
    """Return settings for a step on the CPU; vocabularies that are trained differ as they did."""
    config = load_config(path)
    is_multi = isinstance(config.data, MultiDataConfig)
    text = config.data.shared if is_multi else config.data.model_dump()
    if text["tokenizer"] != "wordpiece":
        return SMALL
    more = config.model.args["vocab_size"] - text["vocab_size"]
    name = "data.shared.vocab_size" if is_multi else "data.vocab_size"
    return [*SMALL, f"{name}={VOCAB_SIZE}", f"model.args.vocab_size={VOCAB_SIZE + more}"]


@pytest.mark.usefixtures("material")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_trains_a_step(path):
    assert run(["train", str(path), "--run-dir", "run", *overrides(path)]) == 0
    assert ModelEngine.load("run/model.bin").spec.tokenizer is not None


@pytest.mark.usefixtures("material")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("finance/adapt", "vocab_size=50"),
        ("finance/fomc", "tok_embed.weight (30522, 32), the model has (50, 32)"),
        ("multitask/phrasebank_fiqa", "vocab_size=50"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_seen(name, words, capsys):
    path = ROOT / f"{name}.yaml"
    wrong = f"model.args.vocab_size={VOCAB_SIZE // 2}"
    assert run(["train", str(path), "--run-dir", "run", *overrides(path), wrong]) != 0
    assert words in capsys.readouterr().err
