"""Every modality goes all the way by its own name: features, codes, attention, second stage, record, card."""

import json

import numpy as np
import pytest
from conftest import N_ITEMS, settings, write_dataset

from recbole_bbqrec import quick_start, schema
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.feature_sources import modalities
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.configuration import comparable_settings, run_key
from recbole_bbqrec.keys import KEYS
from recbole_bbqrec.modalities import MODALITIES
from recbole_bbqrec.preparation.vectors import write_vectors
from recbole_bbqrec.serving.bundle import load_bundle
from recbole_bbqrec.serving.folder import REPORT_CARD, content_of
from recbole_bbqrec.serving.model_card import model_card

MEDIA = {"audio_encoder": "audio.safetensors", "video_fields": "image_codes", "video_encoder": "codes"}


def config(folder, **changes):
    return Config(config_dict=settings(folder, **changes))


def test_every_modality_has_its_keys_and_is_a_signal_of_candidates():
    for name, modality in MODALITIES.items():
        assert {f"{name}_encoder", f"{name}_fields"} <= KEYS.keys() and (f"{name}_folder" in KEYS) == modality.folder
        allowed = KEYS[f"{name}_encoder"].allowed
        assert (allowed is None) == modality.model
        assert name in KEYS["candidate_similarity"].allowed.names


@pytest.mark.parametrize("encoder", ["openai/whisper-tiny", "tfidf", "clip.pt"])
def test_what_no_model_reads_is_refused_with_what_to_give(tiny, encoder):
    with pytest.raises(InputError) as caught:
        config(tiny, video_encoder=encoder)
    expected = "expected codes or a file of vectors (.npy, .safetensors): no model is known for it"
    assert str(caught.value) == f"video_encoder: found {encoder!r}, {expected}"


def test_a_run_without_the_later_ones_is_what_it_was(tiny):
    found = comparable_settings(config(tiny, second_stage="gbdt"))
    before = {**found, "candidate_similarity": ["behavior", "text", "image", "codes"]}
    assert not [key for key in found if key.startswith(("audio", "video"))]
    assert run_key(found, "data") == run_key(before, "data")
    with_video = comparable_settings(
        config(tiny, second_stage="gbdt", video_fields="image_codes", video_encoder="codes")
    )
    left_out = {**with_video, "candidate_similarity": before["candidate_similarity"]}
    assert len({run_key(one, "data") for one in (found, with_video, left_out)}) == 3
    assert schema.encoders(with_video) == ["tfidf", "codes"] and list(modalities(with_video)) == ["text", "video"]


def test_a_run_on_text_audio_and_video(tmp_path):
    folder = write_dataset(tmp_path)
    tokens = [f"i{item:02d}" for item in range(N_ITEMS) if item != 7]
    vectors = np.random.default_rng(0).normal(size=(len(tokens), 5))
    write_vectors(folder / "tiny" / "audio.safetensors", tokens, vectors)
    result = quick_start.run(config_dict=settings(folder, **MEDIA, similarity_attention="additive", report_card=True))
    names = ["text", "audio", "video"]
    bundle = load_bundle(result["run_dir"])
    catalogue = bundle.ranker.catalogue
    assert catalogue.modalities == names and list(catalogue.content) == names
    assert catalogue.features.matrices["audio"].shape == (N_ITEMS + 1, 5)
    assert int((~catalogue.features.present["audio"]).sum()) == 2, "padding, and i07, of which nothing is heard"
    assert catalogue.semantic_ids.signals == [*names, "id"]
    assert {*names, "transition"} <= bundle.model.second_stage.signals.keys()
    report = json.loads((bundle.folder / REPORT_CARD).read_text(encoding="utf-8"))
    assert list(report["disentanglement"]) == names
    card = model_card(bundle.folder, content_of(bundle.folder), [], "me/tiny", None)
    assert "text (tfidf), audio (audio.safetensors), video (codes)" in card
