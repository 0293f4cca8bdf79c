"""E-VQA, E-IC and VLKEB records, and what a missing or broken image in them does."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from easyeditor import CaptionDataset, VLKEBDataset, VQADataset, open_dataset
from easyeditor.edits import check_consistent
from easyeditor.errors import DataError

RECORD = {
    "src": "How many dogs are there?",
    "pred": "1",
    "alt": "2 \n",
    "rephrase": "What is the number of dogs?",
    "image": "a.png",
    "image_rephrase": "b.png",
    "loc": "nq question: who wrote it",
    "loc_ans": "Ada",
    "m_loc": "c.png",
    "m_loc_q": "What is it?",
    "m_loc_a": "a cat",
}
HOPS = {"port_new": [{"port_type": "1-hop", "Q&A": {"Q": "Where do they live?", "port_a": "here"}}]}


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (4, 4), (i * 40, 0, 0)).save(tmp_path / name)
    return tmp_path


def write(folder, *records):
    file = folder / "records.json"
    file.write_text(json.dumps(list(records)), encoding="utf-8")
    return file


def test_a_record_becomes_a_case_with_every_measure(folder):
    case = VQADataset(write(folder, RECORD))[0]
    assert case.edit.target == "2"
    assert case.edit.ground_truth == "1"
    assert case.edit.prompt.images[0].path.endswith("a.png")
    kinds = {probe.kind: probe for probe in case.probes}
    assert list(kinds) == [
        "rephrase/text",
        "rephrase/image",
        "locality/text",
        "locality/image",
        "locality/same_question",
    ]
    assert kinds["locality/text"].prompt == "nq question: who wrote it"
    assert kinds["rephrase/image"].prompt.text == RECORD["src"]
    assert kinds["locality/image"].prompt.images[0].path.endswith("c.png")


def test_the_kind_is_recognised_and_a_template_is_filled(folder):
    dataset = open_dataset(write(folder, RECORD), template="Question: {} Short answer:")
    assert dataset[0].edit.prompt.text == "Question: How many dogs are there? Short answer:"
    assert dataset[0].probes[2].prompt == RECORD["loc"]


def test_captions_with_one_prompt_do_not_contradict_each_other(folder):
    other = {**RECORD, "src": "a photo of", "alt": "two dogs", "image": "b.png"}
    file = write(folder, {**RECORD, "src": "a photo of"}, other)
    check_consistent(case.edit for case in CaptionDataset(file))


def test_portability_is_asked_about_the_image(folder):
    flat = {"port_new": [{"port_q": "Who feeds them?", "port_a": "Bob"}]}
    file = write(folder, {**RECORD, **HOPS}, {**RECORD, **flat})
    for case, answer in zip(VLKEBDataset(file), ("here", "Bob"), strict=True):
        hop = case.probes[-1]
        assert (hop.kind, hop.answers) == ("portability/one_hop", (answer,))
        assert hop.prompt.images == case.edit.prompt.images


def test_classic_configurations_name_the_folders(folder):
    class Config:
        coco_image = str(folder)
        rephrase_image = str(folder / "generated")

    (folder / "generated").mkdir()
    (folder / "b.png").rename(folder / "generated" / "b.png")
    elsewhere = folder / "annotations"
    elsewhere.mkdir()
    case = VQADataset(write(elsewhere, RECORD), config=Config())[0]
    assert case.probes[1].prompt.images[0].path.endswith("b.png")


def test_a_missing_folder_is_found_before_anything_is_edited(folder):
    file = write(folder, RECORD)
    with pytest.raises(DataError, match=r"record 1.*a\.png.*no such file.*images="):
        VQADataset(file, images=folder / "nowhere")


def test_missing_and_broken_images_are_reported_by_record(folder):
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:20])
    records = [RECORD] * 3 + [{**RECORD, "image": "gone.png"}, {**RECORD, "m_loc": "broken.png"}]
    dataset = VQADataset(write(folder, *records))
    problems = dataset.problems()
    assert sorted(problems) == [3, 4]
    assert "gone.png" in problems[3]
    assert problems[4].startswith("m_loc: ")
    with pytest.raises(DataError, match=r"record 4.*gone\.png"):
        dataset[3]


def test_a_template_needs_one_place(folder):
    with pytest.raises(DataError, match="template"):
        VQADataset(write(folder, RECORD), template="Question:")


def test_paths_that_leave_the_folder_are_refused_and_digests_start_there(tmp_path):
    from easyeditor.data.prompts import with_prompts

    for path in ("../a.png", "/etc/hostname"):
        with pytest.raises(DataError, match="outside of the folder"):
            with_prompts({"text": "It is", "images": [path]}, tmp_path)
    image = {"path": "a.png", "sha256": "0" * 64}
    prompt = with_prompts({"text": "It is", "images": [image]}, tmp_path)
    assert prompt.images[0].path == str(tmp_path / "a.png")
