import numpy as np
import pytest
import torch
import yaml
from conftest import settings, write_dataset

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config, usable
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.layers import joined, parse_command_line, read_files
from recbole_bbqrec.settings import (
    KEYS,
    MAY_BE_UNUSED,
    PROPERTIES,
    checked,
    learning_settings,
    plain_settings,
    reference,
    settings_to_load,
)
from recbole_bbqrec.tokenizer.aligned import AlignedTokenizer
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


def test_a_model_of_a_graph_names_the_file_that_is_missing(tmp_path):
    write_dataset(tmp_path)
    given = settings(tmp_path, "CKE")
    with pytest.raises(InputError, match=r"tiny\.kg: no such file; CKE reads a graph .*--kg=codes makes one"):
        Config(config_dict=given)
    assert Config(config_dict={**given, "kg": "codes"})["kg"] == "codes"


BAD = {
    "unknown key names the nearest": (["--hiden_size=32"], "unknown key 'hiden_size'.*did you mean hidden_size"),
    "key of another model": (["--dropout_prob=0.1"], "unknown key 'dropout_prob'"),
    "no key": (["hidden_size"], "argument 'hidden_size': expected --key=value"),
    "no value": (["--hidden_size"], "argument '--hidden_size': expected --key=value"),
    "one key twice": (["--seed=1", "--seed=2"], "--seed is given twice"),
    "word for a number": (["--learning_rate=fast"], "learning_rate: found 'fast', expected a number"),
    "nearly an encoder": (["--text_encoder=tf-idf"], "text_encoder: found 'tf-idf', and there .* did you mean tfidf?"),
    "number for a switch": (["--final=3"], "final: found 3, expected True or False"),
    "switch for a number": (["--epochs=True"], "epochs: found True, expected a whole number"),
    "list for a dict": (["--eval_args=[1]"], "eval_args: found .1., expected a dict, such as"),
    "probability": (["--hidden_dropout_prob=1.5"], "hidden_dropout_prob: found 1.5, expected a probability"),
    "zero": (["--train_batch_size=0"], "train_batch_size: found 0, expected a number above 0"),
    "choice": (["--similarity_attention=sum"], "expected one of additive, multiplicative, undiscretised, off"),
    "heads": (["--n_heads=3"], "hidden_size: found 64, expected a multiple of n_heads 3"),
    "metric": (["--metrics=['AUC']"], "metrics: found 'auc'.*expected some of Recall"),
    "no metric": (["--metrics=[]"], "metrics: found none, expected some of Recall"),
    "valid_metric": (
        ["--valid_metric=NDCG@7"],
        "valid_metric: found 'NDCG@7', by which training stops and which metrics and topk leave out; expected one of",
    ),
    "sampled ranking": (
        ["--eval_args={'mode': 'pop'}"],
        "found mode .*'pop'.*, expected full, where all items are ranked",
    ),
    "mode of no split": (
        ["--eval_args={'mode': {'vaild': 'uni100'}}"],
        "eval_args: found mode of the split 'vaild', expected valid or test",
    ),
    "pickled data set": (["--save_dataset=True"], "save_dataset: RecBole's pickled data cache is not used"),
    "pickled loaders": (["--save_dataloaders=True"], "save_dataloaders: RecBole's pickled data cache"),
    "topk of words": (["--topk=['x']"], "topk: found 'x', expected whole numbers above 0"),
    "topk without the default": (
        ["--topk=[3]"],
        "found 'NDCG@10', by which training stops and which metrics and topk leave out; give --valid_metric=ndcg@3",
    ),
    "load and unload": (["--unload_col={'inter':['timestamp']}"], "unload_col: inter has a load_col too"),
    "columns as text": (
        ["--load_col={'inter':'user_id,item_id'}"],
        "load_col: found 'user_id,item_id' for inter, expected a list",
    ),
    "one field twice": (["--USER_ID_FIELD=item_id"], "expected three different columns"),
    "needed column": (["--unused_col={'inter':['item_id']}"], "unused_col: found 'item_id', which every run reads"),
    "no suffix": (["--LIST_SUFFIX="], "LIST_SUFFIX: found none"),
    "trees": (["--model=LightGBM"], "--model=LightGBM: it grows trees over labelled rows.*register"),
    "tie seed": (["--shuffle_ties=yes"], "shuffle_ties: found 'yes', expected a whole number"),
    "seed": (["--seed=99999999999999999999"], "seed: found 9{20}, expected a whole number from 0 to 4294967295"),
    "negative seed": (["--seed=-1"], "seed: found -1, expected a whole number from 0"),
    "list of choices": (["--candidate_similarity=[text,colour]"], "candidate_similarity: found '.text,colour.'"),
    "list of names": (["--candidate_similarity=['text','colour']"], "found 'colour', expected some of behavior, text"),
    "number beside words": (
        ["--candidate_similarity=[3]"],
        "found 3, expected some of behavior, text, image, audio, video, codes, seen",
    ),
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
    "learner": (["--learner=sparse_adam"], "'sparse_adam', expected one of adam, adamw, sgd, adagrad, rmsprop"),
    "state": (["--state=FOO"], "state: found 'FOO', expected one of debug, info, warning, error, critical"),
    "two parts": (["--eval_args={'split': {'RS': [0.8, 0.2]}}"], "found split .*expected .*three parts for training"),
    "one left out": (
        ["--eval_args={'split': {'LS': 'all'}}"],
        "expected {'LS': 'valid_and_test'} or three parts",
    ),
    "order": (["--eval_args={'order': 'RO'}"], "eval_args: found order 'RO', expected TO"),
    "groups": (["--eval_args={'group_by': 'item'}"], "eval_args: found group_by 'item', expected user or none"),
    "key of a dict": (
        ["--eval_args={'splits': 1}"],
        "eval_args: found the key 'splits', expected some of split, group",
    ),
    "file of columns": (
        ["--load_col={'interactions': []}"],
        "load_col: found the file 'interactions', expected some of",
    ),
    "loss": (["--model=SASRec", "--loss_type=XX"], "loss_type: found 'XX', expected one of CE, BPR"),
    "norm": (["--clip_grad_norm={'norm': 5}"], "clip_grad_norm: found the key 'norm', expected some of max_norm"),
    "pairs": (["--model=FPMC", "--train_neg_sample_args=~"], "found none, but FPMC here trains on negatives; drop it"),
    "no labels": (["--model=DIN", "--train_neg_sample_args=~"], "found none, but DIN here trains on negatives; drop"),
    "half a contrast": (["--model=FEARec", "--contrast=us"], "only beside sim and tau.; add --sim=dot --tau=1"),
    "no norm": (["--clip_grad_norm=0"], "clip_grad_norm: found .*, expected a number above 0, or {'max_norm': 5"),
    "negatives of RecBole": (["--train_neg_sample_args={'distribution': 'popularity'}"], "see n_negatives"),
    "pickled vectors": (
        ["--additional_feat_suffix=[emb]", "--preload_weight={'iid': 'v'}"],
        "text_encoder=vectors.npy",
    ),
    "item columns": (["--selected_features=[brand]"], "only in FDSA, GRU4RecF, SASRecF"),
    "labels": (["--threshold={'rating': 3}"], "threshold: .*only in DIEN and DIN.*use val_interval"),
    "digits": (["--metric_decimal_place=2"], "records keep all of them.; read more digits in the record"),
    "transform": (
        ["--transform=crop_itemseq"],
        "transform: found 'crop_itemseq', which this run of BBQRec would not use",
    ),
    "stock transform": (
        ["--model=SASRec", "--transform=mask_itemseq"],
        "a model reads its own alone: BERT4Rec mask_item",
    ),
    "key of a transform": (["--model=SASRec", "--transform=crop_itemseq", "--eta=0.6"], "it is of RecBole's transform"),
    "interval": (["--user_inter_num_interval=5-9"], "expected a number of interactions at least, such as 5, or an int"),
    "no wandb": (["--log_wandb=True"], "log_wandb: found True, but wandb is not installed; pip install wandb"),
    "device": (["--device=cpu"], "unknown key 'device' for model BBQRec; use_gpu=False computes on the CPU, gpu_id=1"),
    "processes": (
        ["--nproc=2"],
        "unknown key 'nproc' for model BBQRec; for several processes: torchrun",
    ),
    "lr": (["--lr=0.1"], "unknown key 'lr' for model BBQRec; did you mean learning_rate"),
    "dropout": (
        ["--model=GRU4Rec", "--dropout=0.1"],
        "unknown key 'dropout' for model GRU4Rec; did you mean dropout_prob",
    ),
    "nothing near": (["--frobnicate=1"], "unknown key 'frobnicate' for model BBQRec; docs/settings.md lists the keys"),
    "two GPUs": (["--gpu_id=0,1"], "gpu_id: found '0,1', expected one GPU"),
    "config file": (["--config_files=nowhere.yaml"], "config file nowhere.yaml: No such file"),
    "model": (["--model=BBQRek"], "--model=BBQRek: no model.*did you mean BBQRec"),
    "dataset_path": (
        ["--dataset=/data/shop"],
        "--dataset: found '/data/shop', expected a name; give --data_path=/data ",
    ),
    "dataset": (["--dataset=tinny"], "--dataset=tinny: no file .*tinny.inter; did you mean tiny"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_said_in_one_line(tiny, arguments, message):
    given = {"model": "BBQRec", "dataset": "tiny", "data_path": str(tiny)}
    given = {key: value for key, value in given.items() if not any(a.startswith(f"--{key}=") for a in arguments)}
    with pytest.raises(InputError, match=message) as caught:
        Config(config_dict=given, arguments=arguments)
    assert "\n" not in str(caught.value)


def test_short_forms_become_what_recbole_reads(tiny):
    forms = {
        "clip_grad_norm": (5, {"max_norm": 5}),
        "user_inter_num_interval": (9, "[9,inf)"),
        "learner": ("SGD", "sgd"),
    }
    config = config_of(tiny, **{key: form for key, (form, _) in forms.items()}, average_weights=False)
    assert {key: config[key] for key in forms} == {key: form for key, (_, form) in forms.items()}
    assert config_of(tiny, "--item_inter_num_interval=7")["item_inter_num_interval"] == "[7,inf)"
    assert config_of(tiny, "--item_inter_num_interval=(3,7]")["item_inter_num_interval"] == "(3,7]"


def test_a_plain_number_filters_users(tiny):
    dataset = registry.get_dataset("SASRec")(config_of(tiny, "--user_inter_num_interval=9", model="SASRec"))
    counts = np.bincount(dataset.inter_feat["user_id"])[1:]
    assert counts.min() == 9 and 0 < len(counts) < 60


RECBOLES_EXAMPLE = """
USER_ID_FIELD: user_id
ITEM_ID_FIELD: item_id
TIME_FIELD: timestamp
POSITION_FIELD: position_id
NEG_PREFIX: neg_
load_col: {inter: [user_id, item_id, timestamp]}
user_inter_num_interval: "[3,inf)"
epochs: 5
train_batch_size: 64
train_neg_sample_args: ~
eval_args: {split: {LS: valid_and_test}, order: TO, group_by: user, mode: full}
metrics: [Recall, MRR, NDCG, Hit, Precision]
topk: 10
valid_metric: MRR@10
metric_decimal_place: 4
"""


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "BBQRec"])
def test_a_file_as_recbole_documents_it_is_taken_as_it_is(tiny, tmp_path, model):
    (tmp_path / "test.yaml").write_text(RECBOLES_EXAMPLE)
    config = config_of(tiny, "--config_files", str(tmp_path / "test.yaml"), model=model)
    assert (config["epochs"], config["topk"], config["user_inter_num_interval"]) == (5, [10], "[3,inf)")


@pytest.mark.parametrize("topk", ["10", "'10'", "10.0", "[10]", "['10']", "'[10]'"])
def test_cut_offs_in_any_form(tiny, topk):
    assert config_of(tiny, f"--topk={topk}")["topk"] == [10]
    assert config_of(tiny, "--metrics=NDCG,Recall")["metrics"] == ["NDCG", "Recall"]


def test_parts_of_a_dict_leave_the_others_as_they_are(tiny, tmp_path):
    default = config_of(tiny)["eval_args"]
    assert config_of(tiny, "--eval_args={'mode': 'full'}")["eval_args"] == default
    split = {"RS": [8, 1, 1]}
    (tmp_path / "a.yaml").write_text("eval_args: {split: {RS: [8, 1, 1]}}\n")
    layers = config_of(tiny, f"--config_files={tmp_path / 'a.yaml'}", eval_args={"group_by": "none"})
    assert layers["eval_args"] == {**default, "split": split, "group_by": "none"}
    columns = config_of(tiny, "--load_col={'item': ['item_id', 'brand']}", model="SASRec")["load_col"]
    assert columns == {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "brand"]}
    assert config_of(tiny, "--load_col=~", model="SASRec")["load_col"] is None
    assert config_of(tiny, "--load_col={'inter': None}", model="SASRec")["load_col"] == {"inter": None}
    assert config_of(tiny, "--eval_args=~")["eval_args"] == default


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["-m", "SASRec", "-d", "tiny", "-p", "a.yaml b.yaml"],
            "--model=SASRec --dataset=tiny --config_files=a.yaml b.yaml",
        ),
        (["--model", "SASRec", "-d=tiny"], "--model=SASRec --dataset=tiny"),
        (["--final", "--weight_decay", "-0.5", "--a=-1"], "--final=True --weight_decay=-0.5 --a=-1"),
        (["--final", "False", "--x=a=b"], "--final=False --x=a=b"),
    ],
)
def test_arguments_in_the_forms_of_recboles_scripts(arguments, expected):
    assert " ".join(joined(arguments)) == expected and joined(joined(arguments)) == joined(arguments)


def test_without_use_gpu_a_run_computes_on_the_cpu(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert config_of(tiny)["device"].type == "cuda"
    assert config_of(tiny, "--use_gpu=False")["device"].type == "cpu"


def test_a_default_is_never_refused_and_what_the_program_puts_together_neither(tiny):
    config_of(tiny, model="Pop", epochs=300, learning_rate=0.001, transform=None, metric_decimal_place=4)
    marked = config_of(tiny, model="Pop", epochs=5, **{MAY_BE_UNUSED: True})
    assert marked["epochs"] == 5 and MAY_BE_UNUSED not in marked and list(marked.unused) == ["epochs"]
    with pytest.raises(InputError, match=f"unknown key '{MAY_BE_UNUSED}'"):
        config_of(tiny, f"--{MAY_BE_UNUSED}=True")


def test_settings_that_a_model_has_no_use_for_are_told_apart(tiny):
    given = {"dataset": "tiny", "data_path": str(tiny), "epochs": 3, "n_negatives": 9, "sid_levels": 4}
    left, refused = usable({**given, "model": "SASRec"})
    assert given.keys() - left.keys() == {"n_negatives"} and left[MAY_BE_UNUSED]
    assert "unknown key 'n_negatives'" in str(refused["n_negatives"]) and "semantic IDs" in str(refused["sid_levels"])


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


def test_a_config_file_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "x.yaml").write_bytes("text_fields: Künstler".encode("latin-1"))
    with pytest.raises(InputError, match=r"x\.yaml: no valid YAML"):
        read_files([f"--config_files={tmp_path / 'x.yaml'}"])


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
    weight = {"alignment_weight": AlignedTokenizer().alignment_weight}
    defaults = {**BehaviorBindTokenizer().get_params(), **weight}
    config = Config(arguments=["--model=BBQRec", "--dataset=ml-100k"])
    ours = {key.removeprefix("sid_"): value for key, value in config.final_config_dict.items() if key[:4] == "sid_"}
    of_run = ("seed", "device", "progress", "in_order")
    assert ours == {key: value for key, value in defaults.items() if key not in of_run}


def test_settings_helper_matches_the_properties(tiny):
    assert Config(config_dict=settings(tiny))["sid_min_steps"] == 30


def test_columns_that_recbole_loads_for_its_feature_models_stay():
    columns = Config(arguments=["--model=SASRecF", "--dataset=ml-100k"])["load_col"]
    assert columns["inter"] == ["user_id", "item_id", "timestamp"] and "class" in columns["item"]
