"""Tiny transformers models with random weights, saved as real ones are."""

from pathlib import Path

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "lamp", "tent", "rope", *"abcdefgh"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PICTURE = {"image_size": 32, "patch_size": 16}


def save_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer over `WORDS` that puts [CLS] and [SEP] around."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def bert(folder: Path, seed: int = 0) -> Path:
    """A text encoder without a text tower's features."""
    import transformers

    save_tokenizer(folder)
    torch.manual_seed(seed)
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **SMALL)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def vit(folder: Path, classifier: bool = False) -> Path:
    """A vision model; with `classifier` its file has no pooler, as many on the hub."""
    import transformers

    config = transformers.ViTConfig(**SMALL, **PICTURE)
    torch.manual_seed(0)
    kind = transformers.ViTForImageClassification if classifier else transformers.ViTModel
    kind(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    """A model with a text and a vision tower."""
    import transformers

    save_tokenizer(folder)
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 12, "eos_token_id": 3, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config={**SMALL, **PICTURE}, projection_dim=8)
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    return folder
