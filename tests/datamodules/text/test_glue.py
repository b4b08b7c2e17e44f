"""GLUEDataModule: GLUE's own layouts, tables, files of one's own, batches, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from d2v_lightning.support.errors import UserError
from datamodules import GLUEDataModule

LAYOUTS = {
    "cola": ("CoLA", None, "gj04\t{label}\t*\tSome words here {n}.", ["0", "1"]),
    "sst2": ("SST-2", "sentence\tlabel", 'A "quoted film {n}\t{label}', ["0", "1"]),
    "mrpc": ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\tOne {n}\tTwo words", ["0", "1"]),
    "stsb": ("STS-B", "index\tsentence1\tsentence2\tscore", "{n}\tone\ttwo words\t{label}", ["2.5", "4.0"]),
    "qqp": ("QQP", "id\tquestion1\tquestion2\tis_duplicate", "{n}\twhy one\twhy two\t{label}", ["0", "1"]),
    "mnli": ("MNLI", "index\tsentence1\tsentence2\tgold_label", "{n}\tone\ttwo\t{label}", ["neutral", "contradiction"]),
    "qnli": (
        "QNLI",
        "index\tquestion\tsentence\tlabel",
        "{n}\twhy\tbecause\t{label}",
        ["entailment", "not_entailment"],
    ),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel", "{n}\tone\ttwo\t{label}", ["entailment", "not_entailment"]),
    "wnli": ("WNLI", "index\tsentence1\tsentence2\tlabel", "{n}\tone\ttwo\t{label}", ["0", "1"]),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        ["some words here one two why because film"] * 9,
        300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )
    from tokenizers.processors import RobertaProcessing

    made._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", mask_token="<mask>", unk_token="<unk>",
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def write(root: Path, task: str, split: str, count: int) -> None:
    folder, header, line, labels = LAYOUTS[task]
    (root / folder).mkdir(exist_ok=True)
    rows = [line.format(n="x " * n, label=labels[n % 2]) for n in range(count)]
    (root / folder / f"{split}.tsv").write_text("\n".join(([header] if header else []) + rows) + "\n")


def module(root: Path, task: str, tokenizer: str, **options: Any) -> GLUEDataModule:
    data = GLUEDataModule(task, root=str(root), tokenizer=tokenizer, **{"batch_size": 4, **options})  # type: ignore[arg-type]
    data.setup("fit")
    return data


@pytest.mark.parametrize("task", LAYOUTS)
def test_glue_as_it_is_downloaded(task: str, tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path, task, "train", 9)
    for split in ("dev_matched", "dev_mismatched") if task == "mnli" else ("dev",):
        write(tmp_path, task, split, 5)
    data = module(tmp_path, task, tokenizer)
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    batch = batches[0]
    assert (batch["inputs"][:, 0] == 0).all()
    pairs = (batch["inputs"] == 2).sum(dim=1)
    assert (pairs == (1 if task in ("cola", "sst2") else 3)).all(), "<s> a </s>, or <s> a </s></s> b </s>"
    assert "padding_mask" not in batch or torch.equal(batch["padding_mask"], batch["inputs"] == 1)
    loaders = data.val_dataloader()
    assert len(loaders) == (2 if task == "mnli" else 1)
    labels = torch.cat([b["labels"] for b in loaders[0]]).tolist()
    expected = {"stsb": [2.5, 4.0, 2.5, 4.0, 2.5], "mnli": [1, 2, 1, 2, 1]}.get(task, [0, 1, 0, 1, 0])
    assert labels == expected


def test_tables_and_files_of_ones_own(tmp_path: Path, tokenizer: str) -> None:
    from datasets import Dataset, DatasetDict

    rows = {"sentence": ["one film", "two words"], "label": [1, 0], "idx": [0, 1]}
    DatasetDict({"train": Dataset.from_dict(rows), "validation": Dataset.from_dict(rows)}).save_to_disk(
        str(tmp_path / "t")
    )
    data = GLUEDataModule("sst2", dataset=str(tmp_path / "t"), tokenizer=tokenizer, batch_size=2)
    data.setup("fit")
    assert next(iter(data.val_dataloader()[0]))["labels"].tolist() == [1, 0]
    lines = [json.dumps({"a": "one", "b": "two words", "kind": kind}) for kind in ("yes", "no", "yes")]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    own = module(
        tmp_path, "custom", tokenizer, text_columns=["a", "b"], label_column="kind", classes=["no", "yes"], batch_size=3
    )
    assert next(iter(own.val_dataloader()[0]))["labels"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(("task", "least"), [("sst2", 3), ("rte", 6)])
def test_a_length_without_room_for_text_is_refused(task: str, least: int, tmp_path: Path, tokenizer: str) -> None:
    for split in ("train", "dev"):
        write(tmp_path, task, split, 4)
    with pytest.raises(ValueError, match=f"max_length {least - 1} has room for nothing but .* {least} is the least"):
        module(tmp_path, task, tokenizer, max_length=least - 1)
    batch = next(iter(module(tmp_path, task, tokenizer, max_length=least).train_dataloader()))
    assert batch["inputs"].shape[1] == least


def test_length_groups_within_a_budget_of_tokens(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path, "sst2", "train", 30)
    write(tmp_path, "sst2", "dev", 5)
    data = module(tmp_path, "sst2", tokenizer, batch_tokens=120)
    sizes = [batch["inputs"].shape for batch in data.train_dataloader()]
    assert all(rows * length <= 120 for rows, length in sizes)
    assert sum(rows for rows, _ in sizes) == 30
    data.trainer = SimpleNamespace(world_size=len(sizes) + 1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=rf"30 training rows make {len(sizes)} batch\(es\) of 120 tokens for"):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"batch_tokens 4 is smaller than the longest text, \d+ tokens"):
        module(tmp_path, "sst2", tokenizer, batch_tokens=4).train_dataloader()


def test_batches_of_rows_are_limited_in_tokens_and_stay_the_same_every_epoch(tmp_path: Path, tokenizer: str) -> None:
    """fairseq: `batch_size` and `max_tokens`, in an order that `SortDataset` draws once (tasks/sentence_prediction.py)."""
    write(tmp_path, "sst2", "train", 30)
    write(tmp_path, "sst2", "dev", 5)
    data = module(tmp_path, "sst2", tokenizer, batch_size=4, max_tokens=150)
    lengths = [len(ids) for ids in data._examples["train"][0].ids]
    epochs = []
    loader = data.train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append([[index for _, index in batch] for batch in loader.sampler])
    assert sorted(index for batch in epochs[0] for index in batch) == list(range(30))
    sizes = [(len(batch), max(lengths[index] for index in batch)) for batch in epochs[0]]
    assert all(rows <= 4 and rows * longest <= 150 for rows, longest in sizes)
    assert {3, 4} <= {rows for rows, _ in sizes}, "both limits hold somewhere"
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert [batch["inputs"].shape[0] for batch in data.val_dataloader()[0]] == [2, 3], "evaluation is as before"
    with pytest.raises(ValueError, match=r"max_tokens 4 is smaller than the longest text, \d+ tokens"):
        module(tmp_path, "sst2", tokenizer, max_tokens=4).train_dataloader()


def test_a_training_set_below_one_batch_is_refused(tmp_path: Path, tokenizer: str) -> None:
    for split, count in (("train", 3), ("dev", 5)):
        write(tmp_path, "sst2", split, count)
    with pytest.raises(
        ValueError, match=r"batch_size 4 x 1 device\(s\) is more than 3 training rows: set batch_size to at most 3"
    ):
        module(tmp_path, "sst2", tokenizer).train_dataloader()


def test_a_hidden_test_set_is_predicted_and_not_scored(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path, "cola", "train", 4)
    (tmp_path / "CoLA" / "test.tsv").write_text("index\tsentence\n0\tSome words\n1\there\n")
    data = GLUEDataModule("cola", root=str(tmp_path), tokenizer=tokenizer)
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert batch["index"].tolist() == [0, 1]
    assert "labels" not in batch
    data.setup("test")
    with pytest.raises(ValueError, match="has no labels"):
        data.test_dataloader()


def test_mistakes_get_one_line(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path, "sst2", "train", 4)
    for arguments, kind, message in (
        ({"task": "sst3"}, ValueError, "task 'sst3': permitted are cola"),
        ({"task": "custom"}, ValueError, "give text_columns for 'custom'"),
        ({"task": "sst2", "batch_size": 0}, ValueError, "batch_size 0"),
        ({"task": "sst2", "effective_batch": 0}, ValueError, "effective_batch 0: permitted is 1 or more"),
        ({"task": "sst2", "num_workers": -1}, ValueError, "num_workers -1: permitted is 0 or more"),
        ({"task": "sst2", "batch_tokens": 60, "effective_batch": 8}, ValueError, "effective_batch counts samples"),
        ({"task": "sst2", "batch_tokens": 60, "max_tokens": 60}, ValueError, "max_tokens limits batches of batch_size"),
        ({"task": "sst2", "tokenizer": "/no/where"}, ValueError, "no tokenizer at '/no/where'"),
        (
            {"task": "sst2"},
            FileNotFoundError,
            r"has no dev or dev_matched or dev_mismatched as .tsv or .jsonl \(train.tsv\)",
        ),
        ({"task": "sst2", "tokenizer": str(tmp_path)}, ValueError, "cannot be loaded"),
        ({"task": "rte"}, FileNotFoundError, "no such folder"),
    ):
        with pytest.raises(kind, match=message) as error:
            module(tmp_path, **{"tokenizer": tokenizer, **arguments})  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no data: set data\.root"):
        GLUEDataModule(predict_file=str(tmp_path / "SST-2/train.tsv"), tokenizer=tokenizer).setup("fit")
    dev = tmp_path / "SST-2" / "dev.tsv"
    dev.write_text("sentence\tlabel\nfine\tgood\n")
    with pytest.raises(ValueError, match=r"dev\.tsv:2: label 'good', permitted are 0, 1"):
        module(tmp_path, "sst2", tokenizer)
    dev.write_text("text\tlabel\nfine\t1\n")
    with pytest.raises(ValueError, match=r"dev\.tsv:2: there is no column 'sentence', only text, label"):
        module(tmp_path, "sst2", tokenizer)
    dev.write_bytes(b"sentence\tlabel\n\xff\t1\n")
    with pytest.raises(ValueError, match=r"1 of 1 lines cannot be used: .*dev.tsv:2: not UTF-8 at byte 0"):
        module(tmp_path, "sst2", tokenizer)
    dev.write_text("sentence\tlabel\n\t1\n")
    with pytest.warns(UserWarning, match=r"1 row\(s\) have an empty text and are kept: .*dev.tsv:2"):
        module(tmp_path, "sst2", tokenizer)


def test_a_bad_line_among_good_ones_is_left_out_and_named_but_never_of_a_test_set(
    tmp_path: Path, tokenizer: str
) -> None:
    folder = tmp_path / "SST-2"
    folder.mkdir()
    good = ["fine\u2028words\x85here\t1", 'a "quoted film\t0', "crlf\t1\r", "more\t0", "more\t1"]
    bad = ["no label", "a\ttab\t1"]
    text = "\n".join(["\ufeffsentence\tlabel", *good[:2], *bad, *good[2:], ""]).encode() + b"caf\xe9\t1\n"
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_bytes(text)
    said = (
        r"3 line\(s\) are left out: .*train.tsv:4: 1 fields, the header has 2; .*train.tsv:5: .*train.tsv:9: not UTF-8"
    )
    with pytest.warns(UserWarning, match=said):
        data = module(tmp_path, "sst2", tokenizer, batch_size=5)
    examples = data._examples["train"][0]
    assert examples.labels == [1, 0, 1, 0, 1]
    assert [place.rpartition(":")[2] for place in examples.places] == ["2", "3", "6", "7", "8"]
    with pytest.raises(ValueError, match=r"test\.tsv:4: 1 fields, the header has 2"):
        data.setup("test")
    (tmp_path / "own.jsonl").write_text('{"sentence": "one"}\n\n{"sentence": "two"\n')
    data = GLUEDataModule("sst2", tokenizer=tokenizer, predict_file=str(tmp_path / "own.jsonl"))
    with pytest.raises(ValueError, match=r"own\.jsonl:3: not JSON"):
        data.setup("predict")
    (tmp_path / "own.jsonl").write_text('{"sentence": "one"}\n{"text": "two"}\n')
    with pytest.raises(ValueError, match=r"own\.jsonl:2: there is no column 'sentence', only text"):
        data.setup("predict")
    with pytest.raises(ValueError, match=r"must end in .tsv \(with a header\) or .jsonl"):
        GLUEDataModule("sst2", tokenizer=tokenizer, predict_file=__file__).setup("predict")


def test_odd_records_are_left_out_everywhere_but_of_a_test_set(tmp_path: Path, tokenizer: str) -> None:
    lines = [
        '{"sentence": "one", "label": 1}', r'{"sentence": "half \ud83d", "label": "1"}', '{"sentence": null, "label": 1}',
        "", '{"sentence": 7, "label": 1}', '{"text": "x", "label": 1}', '["x"]', '{"sentence": "two", "label": 0}',
        '{"sentence": "no label"}', '{"sentence": "odd", "label": "maybe"}', '{"sentence": "odd", "label": [1]}',
        r'{"sentence": "zero \u0000", "label": 0}', *[f'{{"sentence": "{n}", "label": "{n % 2}"}}' for n in range(9)],
    ]  # fmt: skip
    (tmp_path / "SST-2").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "SST-2" / f"{split}.jsonl").write_text("\n".join(lines))
    with pytest.warns(
        UserWarning, match=r"9 line\(s\) are left out: .*jsonl:7: not a JSON object but list; .*jsonl:2: half a"
    ):
        data = module(tmp_path, "sst2", tokenizer)
    for split in ("train", "val"):
        examples = data._examples[split][0]
        assert [int(place.rpartition(":")[2]) for place in examples.places] == [1, 8, *range(13, 22)]
        assert examples.labels == [1, 0, *(n % 2 for n in range(9))]
        assert len(examples.ids) == 11
    with pytest.raises(
        ValueError, match=r"test.jsonl:7: not a JSON object but list: no row of a test set may be missing, 9"
    ):
        data.setup("test")
    data = GLUEDataModule("sst2", tokenizer=tokenizer, predict_file=str(tmp_path / "SST-2" / "test.jsonl"))
    with pytest.warns(UserWarning, match=r"6 line\(s\) are left out"):
        data.setup("predict")
    assert [int(place.rpartition(":")[2]) for place in data.predict_paths] == [1, 8, 9, 10, 11, *range(13, 22)]
    assert next(iter(data.predict_dataloader()))["index"].tolist()[:3] == [0, 1, 2]


def test_null_cells_of_a_table_are_left_out(tmp_path: Path, tokenizer: str) -> None:
    from datasets import Dataset, DatasetDict

    rows = {"sentence": ["one", None, "two", "three"], "label": [1, 0, None, 0], "idx": [0, 1, 2, 3]}
    table = Dataset.from_dict(rows)
    DatasetDict({"train": table, "validation": table}).save_to_disk(str(tmp_path / "t"))
    data = GLUEDataModule("sst2", dataset=str(tmp_path / "t"), tokenizer=tokenizer, batch_size=2)
    with pytest.raises(ValueError, match=r"2 of 4 lines cannot be used: .*\[train\] row 1: NoneType in place of text"):
        data.setup("fit")
    rows["sentence"][1] = "four"
    table = Dataset.from_dict(rows)
    DatasetDict({"train": table, "validation": table}).save_to_disk(str(tmp_path / "u"))
    data = GLUEDataModule("sst2", dataset=str(tmp_path / "u"), tokenizer=tokenizer, batch_size=2)
    with pytest.warns(
        UserWarning, match=r"1 line\(s\) are left out: .*\[train\] row 2: label None, permitted are 0, 1"
    ):
        data.setup("fit")
    assert data._examples["train"][0].labels == [1, 0, 0]
