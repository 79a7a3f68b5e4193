import numpy as np
import pytest
import yaml
from conftest import settings, write_dataset

from recbole_bbqrec.config import Config, parse_command_line
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.settings import (
    KEYS,
    PROPERTIES,
    checked,
    learning_settings,
    plain_settings,
    reference,
    settings_to_load,
)
from recbole_bbqrec.tokenizer.fit import BehaviorBindTokenizer


def config_of(tiny, *arguments, model="BBQRec", files=(), **changes):
    given = {"model": model, "dataset": "tiny", "data_path": str(tiny), **changes}
    return Config(config_file_list=files, config_dict=given, arguments=arguments)


def test_precedence_command_line_file_properties_recbole(tiny, tmp_path):
    assert config_of(tiny)["hidden_dropout_prob"] == 0.3  # ours
    assert config_of(tiny)["clip_grad_norm"] is None  # RecBole's
    (tmp_path / "a.yaml").write_text("hidden_dropout_prob: 0.1\nn_layers: 4\n")
    (tmp_path / "b.yaml").write_text("n_layers: 3\n")
    files = f"{tmp_path / 'a.yaml'} {tmp_path / 'b.yaml'}"
    config = config_of(tiny, f"--config_files={files}", "--n_heads=4", "--hidden_dropout_prob=0.2")
    assert (config["hidden_dropout_prob"], config["n_layers"], config["n_heads"]) == (0.2, 3, 4)


def test_dataset_properties_are_read_by_name():
    config = Config(arguments=["--model=BBQRec", "--dataset=ml-100k"])
    assert config["text_encoder"] == "tfidf"
    assert config["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}


def test_recbole_models_keep_their_own_settings(tiny):
    config = config_of(tiny, model="SASRec")
    assert config["hidden_dropout_prob"] == 0.5 and config["train_batch_size"] == 2048
    assert config["topk"] == [5, 10, 20] and config["valid_metric"] == "NDCG@10"
    assert config_of(tiny, "--loss_type=BPR", model="SASRec")["train_neg_sample_args"]["distribution"] == "uniform"


def test_command_line_values_are_literals_and_never_code():
    parsed = parse_command_line(
        [
            *("--a=1", "--b=1e-3", "--c=[5,10]", "--d=true", "--e=None", "--f=x=y", "--final"),
            "--g=__import__('os').getcwd()",
        ]
    )
    assert parsed == {
        **{"a": 1, "b": 1e-3, "c": [5, 10], "d": True, "e": None, "f": "x=y", "final": True},
        "g": "__import__('os').getcwd()",
    }


BAD = {
    "unknown key names the nearest": (["--hiden_size=32"], "unknown key 'hiden_size'.*did you mean hidden_size"),
    "key of another model": (["--dropout_prob=0.1"], "unknown key 'dropout_prob'"),
    "no key": (["hidden_size"], "argument 'hidden_size': expected --key=value"),
    "no value": (["--hidden_size"], "argument '--hidden_size': expected --key=value"),
    "one key twice": (["--seed=1", "--seed=2"], "--seed is given twice"),
    "word for a number": (["--learning_rate=fast"], "learning_rate: found 'fast' .str., expected float"),
    "number for a switch": (["--final=3"], "final: found 3 .int., expected bool"),
    "switch for a number": (["--epochs=True"], "epochs: found True .bool., expected int"),
    "list for a dict": (["--eval_args=[1]"], "eval_args: found .1. .list., expected dict"),
    "probability": (["--hidden_dropout_prob=1.5"], "hidden_dropout_prob: found 1.5, expected a probability"),
    "zero": (["--train_batch_size=0"], "train_batch_size: found 0, expected a number above 0"),
    "choice": (["--similarity_attention=sum"], "expected one of additive, multiplicative, undiscretised, off"),
    "heads": (["--n_heads=3"], "hidden_size: found 64, expected a multiple of n_heads 3"),
    "metric": (["--metrics=['AUC']"], "metrics: found 'auc'.*expected some of Recall"),
    "valid_metric": (["--valid_metric=NDCG@7"], "valid_metric: found 'NDCG@7', expected one of"),
    "sampled ranking": (["--eval_args={'mode': 'uni100'}"], "every item is ranked"),
    "pickled data set": (["--save_dataset=True"], "save_dataset: RecBole's pickled data cache is not used"),
    "pickled loaders": (["--save_dataloaders=True"], "save_dataloaders: RecBole's pickled data cache"),
    "tie seed": (["--shuffle_ties=yes"], "shuffle_ties: found 'yes' .str., expected int"),
    "seed": (["--seed=99999999999999999999"], "seed: found 9{20}, expected a whole number from 0 to 4294967295"),
    "negative seed": (["--seed=-1"], "seed: found -1, expected a whole number from 0"),
    "list of choices": (["--candidate_similarity=[text,colour]"], "candidate_similarity: found '.text,colour.'"),
    "list of names": (["--candidate_similarity=['text','colour']"], "found 'colour', expected some of behavior, text"),
    "number beside words": (["--candidate_similarity=[3]"], "found 3, expected some of behavior, text, image, seen"),
    "negatives": (["--n_negatives=-5"], "n_negatives: found -5, expected 0 or more"),
    "hops": (
        ["--model=TransitionGraph", "--graph_hops=[4]"],
        "graph_hops: found 4, expected whole numbers from 1 to 3",
    ),
    "no hops": (["--model=TransitionGraph", "--graph_hops=[]"], "graph_hops: found None, expected whole numbers"),
    "hops left out": (["--model=TransitionGraph", "--graph_hops=~"], "graph_hops: found None, expected whole numbers"),
    "last items": (["--model=TransitionGraph", "--graph_last_items=0"], "graph_last_items: found 0, expected whole"),
    "decay": (["--model=TransitionGraph", "--graph_hop_decay=[0]"], "graph_hop_decay: found 0, expected numbers above"),
    "decay word": (["--model=TransitionGraph", "--graph_position_decay=[a]"], "graph_position_decay: found '.a.'"),
    "cosine": (["--model=TransitionGraph", "--graph_cosine_weight=[-1.0]"], "graph_cosine_weight: found -1.0"),
    "TIGER's heads": (["--model=TIGER", "--heads=0"], "heads: found 0, expected a number above 0"),
    "TIGER's head size": (["--model=TIGER", "--head_size=-2"], "head_size: found -2, expected a number above 0"),
    "config file": (["--config_files=nowhere.yaml"], "config file nowhere.yaml: No such file"),
    "model": (["--model=BBQRek"], "--model=BBQRek: no sequential model.*did you mean BBQRec"),
    "not sequential": (["--model=LightGCN"], "--model=LightGCN: no sequential model"),
    "dataset": (["--dataset=tinny"], "--dataset=tinny: no file .*tinny.inter; did you mean tiny"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_said_in_one_line(tiny, arguments, message):
    given = {"model": "BBQRec", "dataset": "tiny", "data_path": str(tiny)}
    given = {key: value for key, value in given.items() if not any(a.startswith(f"--{key}=") for a in arguments)}
    with pytest.raises(InputError, match=message) as caught:
        Config(config_dict=given, arguments=arguments)
    assert "\n" not in str(caught.value)


def test_a_key_that_may_be_empty_can_be_emptied_where_the_data_set_fills_it(tmp_path):
    write_dataset(tmp_path, "ml-100k-poster")
    given = {"model": "BBQRec", "dataset": "ml-100k-poster", "data_path": str(tmp_path)}
    shuffled, as_in_the_file = (Config(config_dict=given, arguments=ties) for ties in ([], ["--shuffle_ties=~"]))
    assert shuffled["shuffle_ties"] == 2020  # the data set's own settings
    assert as_in_the_file["shuffle_ties"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "no valid YAML"),
        ("- 1\n", "found list, expected lines"),
        ("learning_rate: !!python/name:os.system\n", "no valid YAML .could not determine a constructor"),
        ("learning_rate: !!python/object/apply:os.getcwd []\n", "no valid YAML .could not determine a constructor"),
    ],
)
def test_broken_config_files(tiny, tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match=f"x.yaml: {message}"):
        config_of(tiny, files=[str(tmp_path / "x.yaml")])


def test_missing_model_says_how_to_name_one():
    with pytest.raises(InputError, match="--model is missing; for example"):
        Config(arguments=["--dataset=ml-100k"])


def test_every_key_of_our_files_is_known_and_its_default_allowed():
    recboles = {"train_neg_sample_args", "learner", "extends"}
    for path in [PROPERTIES / "overall.yaml", *(PROPERTIES / "model").glob("*.yaml")]:
        for key, value in yaml.safe_load(path.read_text()).items():
            if key not in recboles:
                assert key in KEYS, f"{path.name}: {key} has no entry in KEYS"
                value = float(value) if KEYS[key].type is float else value  # 1e-12 is a text to plain YAML
                assert checked(key, value, None) == value
    used = {key for path in PROPERTIES.rglob("*.yaml") for key in yaml.safe_load(path.read_text()) or {}}
    assert not set(KEYS) - used - {"MAX_ITEM_LIST_LENGTH"}, "keys that no file has a default for"


def test_the_reference_of_keys_is_up_to_date():
    written = (PROPERTIES.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == reference(), "make it again: python -m recbole_bbqrec.settings > docs/settings.md"


def test_settings_survive_the_way_to_a_file_and_back(tiny):
    config = config_of(tiny, "--n_layers=1", "--topk=[3,10]")
    again = Config(config_dict=settings_to_load(yaml.safe_load(yaml.safe_dump(plain_settings(config)))))
    assert plain_settings(again) == plain_settings(config)


def test_where_a_run_writes_does_not_change_what_it_learns(tiny):
    here = learning_settings(config_of(tiny, "--final", "--checkpoint_dir=a", "--result_file=b"))
    assert here == learning_settings(config_of(tiny))
    assert here != learning_settings(config_of(tiny, "--seed=1"))


def test_building_a_config_gives_numpy_only_names_it_lacks(tiny):
    before = {name: getattr(np, name) for name in ("bool", "float64", "int_")}
    config_of(tiny)
    assert all(getattr(np, name) is value for name, value in before.items())
    assert np.float is np.float64  # RecBole's metrics use it


def test_tokenizer_settings_are_the_tokenizers_own_defaults():
    defaults = BehaviorBindTokenizer().get_params()
    config = Config(arguments=["--model=BBQRec", "--dataset=ml-100k"])
    ours = {key.removeprefix("sid_"): value for key, value in config.final_config_dict.items() if key[:4] == "sid_"}
    assert ours == {key: value for key, value in defaults.items() if key not in ("seed", "device", "progress")}


def test_settings_helper_matches_the_properties(tiny):
    assert Config(config_dict=settings(tiny))["sid_min_steps"] == 30


def test_columns_that_recbole_loads_for_its_feature_models_stay():
    columns = Config(arguments=["--model=SASRecF", "--dataset=ml-100k"])["load_col"]
    assert columns["inter"] == ["user_id", "item_id", "timestamp"] and "class" in columns["item"]
