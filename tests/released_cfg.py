"""Options as released files store them: values of fairseq's YAML files and BEiT's commands, with their classes' defaults.

Sources, facebookresearch/fairseq at 3d262bb: examples/data2vec/config/v2, audio/pretraining, text/pretraining and
vision/finetuning; examples/wav2vec/config/finetuning; examples/data2vec/models (data2vec2, data2vec_audio, data2vec_text,
mae_image_classification, modalities); fairseq/models/wav2vec (wav2vec2, wav2vec2_asr); fairseq/optim. data2vec_vision:
beit/README.md, run_cyclical.py, run_class_finetuning.py. fairseq stores what hydra has resolved: no reference is left.
"""

from __future__ import annotations

from typing import Any

Cfg = dict[str, Any]

CONVOLUTIONS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"
MACHINE: Cfg = {
    "common": {"fp16": True, "bf16": False, "amp": False, "seed": 1, "log_interval": 200, "tensorboard_logdir": "tb"},
    "checkpoint": {"save_interval_updates": 25000, "keep_interval_updates": 1, "no_epoch_checkpoints": True},
}


def merged(base: Cfg, changes: Cfg) -> Cfg:
    """`base` with changes, section by section."""
    result = dict(base)
    for name, value in changes.items():
        inside = result.get(name)
        result[name] = merged(inside, value) if isinstance(inside, dict) and isinstance(value, dict) else value
    return result


def run(
    *,
    max_update: int,
    lr: float,
    world: int,
    dataset: Cfg,
    clip_norm: float = 0.0,
    update_freq: int = 1,
    max_epoch: int = 0,
    **sections: Cfg,
) -> Cfg:
    """A whole `cfg`."""
    length = {"max_epoch": max_epoch, "max_update": max_update, "clip_norm": clip_norm}
    subsets = {"train_subset": "train", "valid_subset": "valid", "num_workers": 6, "required_batch_size_multiple": 1}
    whole = {
        **MACHINE,
        "dataset": {"batch_size": None, "max_tokens": None, **subsets, **dataset},
        "distributed_training": {"distributed_world_size": world},
        "optimization": {
            **length,
            "lr": [lr],
            "update_freq": [update_freq],
            "sentence_avg": False,
            "stop_min_lr": -1.0,
        },
        "criterion": {"_name": "model"},
    }
    return merged(whole, sections)


def adam(betas: Any, eps: float, weight_decay: float) -> Cfg:
    return {"_name": "adam", "adam_betas": betas, "adam_eps": eps, "weight_decay": weight_decay, "use_old_adam": False}


def cosine(warmup: int, min_lr: float = 0.0) -> Cfg:
    return {
        "_name": "cosine",
        "warmup_updates": warmup,
        "warmup_init_lr": -1,
        "min_lr": min_lr,
        "lr_period_updates": -1,
    }


def composite(lr: float, optimizer: Cfg, scheduler: Cfg, *more: str) -> Cfg:
    """Sections `optimizer` and `lr_scheduler`: groups hold what their YAML has, without defaults."""
    optimizer = {name: value for name, value in optimizer.items() if name != "use_old_adam"}
    scheduler = {
        name: value for name, value in scheduler.items() if name not in ("warmup_init_lr", "lr_period_updates")
    }
    group = {"lr_float": lr, "optimizer": optimizer, "lr_scheduler": scheduler}
    groups = {name: group for name in ("default", *more)}
    return {
        "optimizer": {"_name": "composite", "dynamic_groups": not more, "groups": groups},
        "lr_scheduler": {"_name": "pass_through"},
    }


# ---- pre-training, 2.0 -------------------------------------------------------------------------------------------------

MODALITY: Cfg = {
    "prenet_depth": 4, "prenet_layerdrop": 0, "prenet_dropout": 0, "start_drop_path_rate": 0, "end_drop_path_rate": 0,
    "num_extra_tokens": 0, "init_extra_token_zero": True, "mask_noise_std": 0.01, "mask_prob_min": None, "mask_prob": 0.7,
    "inverse_mask": False, "mask_prob_adjust": 0, "keep_masked_pct": 0, "mask_length": 5, "add_masks": False,
    "remove_masks": False, "mask_dropout": 0.0, "encoder_zero_mask": True, "mask_channel_prob": 0.0,
    "mask_channel_length": 64, "ema_local_encoder": False, "local_grad_mult": 1.0, "use_alibi_encoder": False,
    "alibi_scale": 1.0, "learned_alibi": False, "alibi_max_pos": None, "learned_alibi_scale": False,
    "learned_alibi_scale_per_head": False, "learned_alibi_scale_per_layer": False,
    "decoder": {
        "decoder_dim": 384, "decoder_groups": 16, "decoder_kernel": 5, "decoder_layers": 5, "input_dropout": 0.1,
        "add_positions_masked": False, "add_positions_all": False, "decoder_residual": True, "projection_layers": 1,
        "projection_ratio": 2.0,
    },
}  # fmt: skip
OF_MODALITY: dict[str, Cfg] = {
    "audio": {
        "type": "AUDIO", "extractor_mode": "layer_norm", "feature_encoder_spec": CONVOLUTIONS, "conv_pos_width": 95,
        "conv_pos_groups": 16, "conv_pos_depth": 5, "conv_pos_pre_ln": False,
    },
    "image": {
        "type": "IMAGE", "input_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 768, "alibi_dims": 2,
        "alibi_distance": "manhattan", "fixed_positions": True, "transformer_decoder": False, "enc_dec_transformer": False,
    },
    "text": {
        "type": "TEXT", "max_source_positions": 512, "learned_pos": True, "dropout": 0.1, "no_scale_embedding": True,
        "layernorm_embedding": True, "no_token_positional_embeddings": False,
    },
}  # fmt: skip
MULTI: Cfg = {
    "_name": "data2vec_multi", "loss_beta": 0, "loss_scale": None, "depth": 8, "start_drop_path_rate": 0,
    "end_drop_path_rate": 0, "num_heads": 12, "norm_eps": 1e-6, "norm_affine": True, "encoder_dropout": 0.1,
    "post_mlp_drop": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0, "dropout_input": 0.0, "layerdrop": 0.0,
    "embed_dim": 768, "mlp_ratio": 4, "layer_norm_first": False, "average_top_k_layers": 8, "end_of_block_targets": False,
    "clone_batch": 1, "layer_norm_target_layer": False, "batch_norm_target_layer": False,
    "instance_norm_target_layer": False, "instance_norm_targets": False, "layer_norm_targets": False, "ema_decay": 0.999,
    "ema_same_dtype": True, "log_norms": True, "ema_end_decay": 0.9999, "ema_encoder_only": True, "shared_decoder": None,
    "min_target_var": 0.1, "min_pred_var": 0.01, "mae_init": False, "seed": 1, "skip_ema": False, "cls_loss": 0,
    "recon_loss": 0, "d2v_loss": 1, "decoder_group": False,
    "modalities": {name: merged(MODALITY, own) for name, own in OF_MODALITY.items()},
}  # fmt: skip


def multi(modality: str, own: Cfg, **model: Any) -> Cfg:
    return merged(MULTI, {"supported_modality": modality.upper(), **model, "modalities": {modality: own}})


NO_DROPOUT: Cfg = dict.fromkeys(("encoder_dropout", "post_mlp_drop", "attention_dropout", "activation_dropout"), 0)
IMAGE_TASK: Cfg = {"_name": "mae_image_pretraining", "data": "/imagenet", "rebuild_batches": True, "key": "source"}


def image_v2(world: int, batch: int, lr: float, updates: int, model: Cfg, image: Cfg) -> Cfg:
    decoder = {"decoder_dim": 1024, "decoder_groups": 16, "decoder_kernel": 5, "decoder_layers": 3, "input_dropout": 0}
    own = {
        "inverse_mask": True, "mask_prob": 0.75, "mask_prob_adjust": 0.1, "mask_length": 3, "mask_noise_std": 0.01,
        "prenet_depth": 0, "ema_local_encoder": True, "num_extra_tokens": 1, "init_extra_token_zero": False,
        "use_alibi_encoder": False, "decoder": decoder,
    }  # fmt: skip
    whole = {
        "ema_decay": 0.9998, "instance_norm_target_layer": True, "layer_norm_target_layer": False,
        "layer_norm_targets": True, "end_of_block_targets": False, "clone_batch": 16, "norm_eps": 1e-6,
        "min_target_var": 0, "min_pred_var": 0, **NO_DROPOUT, "cls_loss": 0.01, "ema_encoder_only": False,
    }  # fmt: skip
    return run(
        max_update=updates,
        lr=lr,
        world=world,
        clip_norm=4,
        dataset={"batch_size": batch, "num_workers": 10},
        task=IMAGE_TASK,
        model=multi("image", merged(own, image), **merged(whole, model)),
        **composite(lr, adam([0.9, 0.95], 1e-8, 0.05), cosine(50_040)),
    )


def huge(world: int, updates: int, patch: int, end: float, anneal: int) -> Cfg:
    sizes = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "average_top_k_layers": 24}
    ema = {"ema_end_decay": end, "ema_anneal_end_step": anneal}
    return image_v2(world, 8, 4e-4, updates, {**sizes, **ema}, {"patch_size": patch, "embed_dim": 1280})


def audio_v2(world: int, tokens: int, lr: float, updates: int, model: Cfg, audio: Cfg, **sections: Any) -> Cfg:
    own = {
        "inverse_mask": False, "mask_length": 5, "mask_noise_std": 0.01, "mask_dropout": 0, "add_masks": False,
        "ema_local_encoder": False, "use_alibi_encoder": True, "prenet_dropout": 0.1, "learned_alibi_scale": True,
        "learned_alibi_scale_per_head": True,
        "decoder": {"input_dropout": 0.1, "decoder_groups": 16, "decoder_kernel": 7, "decoder_layers": 4},
    }  # fmt: skip
    whole = {
        "ema_encoder_only": False, "instance_norm_target_layer": True, "layer_norm_target_layer": False,
        "layer_norm_targets": False, "norm_eps": 1e-5,
    }  # fmt: skip
    return run(
        max_update=updates,
        lr=lr,
        world=world,
        dataset={"max_tokens": tokens},
        task={
            "_name": "audio_pretraining", "data": "/manifests", "max_sample_size": 320_000, "min_sample_size": 32_000,
            "normalize": True, "sample_rate": 16_000, "enable_padding": False, "rebuild_batches": True,
        },
        model=multi("audio", merged(own, audio), **{**whole, **model}),
        **sections,
    )  # fmt: skip


def text_v2(world: int, batch: int, lr: float, updates: int, model: Cfg, text: Cfg, *groups: str) -> Cfg:
    decoder = {
        "input_dropout": 0.1, "decoder_dim": 768, "decoder_groups": 1, "decoder_kernel": 9, "decoder_layers": 5,
        "decoder_residual": False, "projection_layers": 2, "projection_ratio": 2.0,
    }  # fmt: skip
    own = {"mask_length": 1, "mask_noise_std": 0.01, "prenet_depth": 0, "decoder": decoder}
    ema = {"ema_decay": 0.9999, "ema_end_decay": 0.99999, "ema_anneal_end_step": 100_000, "ema_encoder_only": True}
    whole = {"loss_scale": 1, "clone_batch": 8, **ema, "layerdrop": 0, "norm_eps": 1e-5}
    return run(
        max_update=updates,
        lr=3e-4 if groups else lr,
        world=world,
        clip_norm=1,
        dataset={"batch_size": batch},
        task={
            "_name": "masked_lm", "data": "/bookwiki", "sample_break_mode": "none", "tokens_per_sample": 512,
            "include_target_tokens": True, "random_token_prob": 0, "leave_unmasked_prob": 0, "mask_prob": 0.15,
            "mask_whole_words": False, "mask_multiple_length": 1, "mask_stdev": 0.0, "skip_masking": True, "d2v2_multi": True,
        },
        model=multi("text", merged(own, text), **{**whole, **model}),
        **composite(lr, adam([0.9, 0.98], 1e-6, 0.01), cosine(4_000), *groups),
    )  # fmt: skip


LARGE: Cfg = {"embed_dim": 1024, "num_heads": 16}
BASE_TEXT: Cfg = {"depth": 12, "average_top_k_layers": 12, "instance_norm_target_layer": True}
LARGE_TEXT: Cfg = {
    "depth": 24, **LARGE, "average_top_k_layers": 24, "layer_norm_target_layer": True, "instance_norm_targets": True
}  # fmt: skip
ADAM = adam([0.9, 0.98], 1e-6, 0.01)
PRETRAINED: dict[str, Cfg] = {
    "image_v2_base": image_v2(
        16, 16, 1e-3, 375_300,
        {"depth": 10, "average_top_k_layers": 10, "ema_end_decay": 0.99999, "ema_anneal_end_step": 100_000},
        {"mask_prob": 0.8, "mask_prob_adjust": 0.07, "prenet_depth": 2,
         "decoder": {"decoder_dim": 768, "decoder_kernel": 3, "decoder_layers": 6}},
    ),
    "image_v2_large": image_v2(
        16, 8, 4e-4, 375_300,
        {"depth": 24, **LARGE, "average_top_k_layers": 18, "ema_end_decay": 0.99999, "ema_anneal_end_step": 150_000},
        {"embed_dim": 1024},
    ),
    "image_v2_huge": huge(32, 500_000, 14, 1, 300_000),
    "image_v2_huge16": huge(16, 375_300, 16, 0.99995, 150_000),
    "audio_v2_base": audio_v2(
        8, 1_000_000, 7.5e-4, 400_000,
        {"depth": 12, "clone_batch": 8, "ema_decay": 0.999, "ema_end_decay": 0.99999, "ema_anneal_end_step": 75_000,
         "average_top_k_layers": 8, "layerdrop": 0.05},
        {"prenet_depth": 0, "mask_prob": 0.5, "mask_prob_adjust": 0.05, "prenet_layerdrop": 0.05,
         "decoder": {"decoder_dim": 384}},
        optimizer=ADAM, lr_scheduler=cosine(8_000),
    ),
    "audio_v2_large": audio_v2(
        48, 320_000, 4e-4, 600_000,
        {"depth": 16, **LARGE, "clone_batch": 12, "ema_decay": 0.9997, "ema_end_decay": 1, "ema_anneal_end_step": 300_000,
         "average_top_k_layers": 16, "layerdrop": 0},
        {"prenet_depth": 8, "mask_prob": 0.55, "mask_prob_adjust": 0.1, "prenet_layerdrop": 0,
         "decoder": {"decoder_dim": 768}},
        clip_norm=1, **composite(4e-4, ADAM, cosine(10_000)),
    ),
    "text_v2_base": text_v2(16, 4, 2e-4, 1_000_000, BASE_TEXT, {"mask_prob": 0.48}),
    "text_v2_large": text_v2(32, 2, 1e-4, 600_000, LARGE_TEXT, {"mask_prob": 0.5}),
    "text_v2_large_1m": text_v2(
        32, 2, 1e-4, 1_000_000, {**LARGE_TEXT, "loss_beta": 4, "decoder_group": True}, {"mask_prob": 0.5}, "decoder"
    ),
    # ---- 1.0 -----------------------------------------------------------------------------------------------------------
    "audio_base": run(
        max_update=400_000, lr=5e-4, world=16, dataset={"max_tokens": 3_800_000},
        task={
            "_name": "audio_pretraining", "data": "/manifests", "max_sample_size": 320_000, "min_sample_size": 32_000,
            "normalize": True, "sample_rate": 16_000, "enable_padding": False,
        },
        optimizer=adam("(0.9,0.98)", 1e-6, 0.01),
        lr_scheduler={
            "_name": "tri_stage", "phase_ratio": [0.03, 0.9, 0.07], "init_lr_scale": 0.01, "final_lr_scale": 0.01,
            "warmup_steps": 0, "hold_steps": 0, "decay_steps": 0,
        },
        model={
            "_name": "data2vec_audio", "extractor_mode": "layer_norm", "encoder_layers": 12, "encoder_embed_dim": 768,
            "encoder_ffn_embed_dim": 3072, "encoder_attention_heads": 12, "activation_fn": "gelu", "dropout": 0.1,
            "attention_dropout": 0.1, "activation_dropout": 0.0, "encoder_layerdrop": 0.05, "dropout_input": 0.0,
            "dropout_features": 0.0, "layer_norm_first": False, "conv_feature_layers": CONVOLUTIONS, "conv_bias": False,
            "feature_grad_mult": 1.0, "mask_length": 10, "mask_prob": 0.65, "mask_selection": "static", "mask_other": 0,
            "no_mask_overlap": False, "mask_min_space": 1, "require_same_masks": True, "mask_dropout": 0,
            "mask_channel_length": 10, "mask_channel_prob": 0.0, "conv_pos": 95, "conv_pos_groups": 16,
            "pos_conv_depth": 5, "loss_beta": 0, "loss_scale": None, "average_top_k_layers": 8,
            "layer_norm_target_layer": False, "instance_norm_target_layer": True, "instance_norm_targets": False,
            "layer_norm_targets": False, "batch_norm_target_layer": False, "group_norm_target_layer": False,
            "ema_decay": 0.999, "ema_end_decay": 0.9999, "ema_anneal_end_step": 30_000, "ema_transformer_only": True,
            "ema_layers_only": True, "max_update": 400_000, "min_target_var": 0.1, "min_pred_var": 0.01,
        },
    ),
    "text_base": run(
        max_update=1_000_000, lr=2e-4, world=16, clip_norm=5, dataset={"max_tokens": 8192},
        task={
            "_name": "masked_lm", "data": "/bookwiki", "sample_break_mode": "complete_doc", "tokens_per_sample": 512,
            "include_target_tokens": True, "random_token_prob": 0, "leave_unmasked_prob": 0, "mask_prob": 0.35,
            "mask_multiple_length": 4, "mask_whole_words": False, "mask_stdev": 0.0, "freq_weighted_replacement": False,
        },
        optimizer=adam("(0.9,0.98)", 1e-6, 0.01), lr_scheduler=cosine(10_000),
        model={
            "_name": "data2vec_text", "max_positions": 512, "head_layers": 2, "load_checkpoint_heads": False,
            "loss_beta": 4, "loss_scale": 1, "average_top_k_layers": 10, "layer_norm_target_layer": True,
            "instance_norm_target_layer": False, "batch_norm_target_layer": False, "instance_norm_targets": False,
            "layer_norm_targets": False, "ema_decay": 0.999, "ema_end_decay": 0.9999, "ema_anneal_end_step": 300_000,
            "ema_transformer_layers_only": True,
            "transformer": {
                "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0, "layernorm_embedding": True,
                "activation_fn": "gelu", "no_scale_embedding": True, "max_source_positions": 512,
                "encoder": {
                    "embed_dim": 768, "ffn_embed_dim": 3072, "layers": 12, "attention_heads": 12,
                    "normalize_before": False, "learned_pos": True, "layerdrop": 0,
                },
            },
        },
    ),
}  # fmt: skip

# ---- BEiT's trainers ---------------------------------------------------------------------------------------------------

BEIT: Cfg = {
    "model": "beit_base_patch16_224", "seed": 0, "rel_pos_bias": True, "abs_pos_emb": False, "input_size": 224,
    "opt": "adamw", "opt_eps": 1e-8, "opt_betas": None, "momentum": 0.9, "weight_decay_end": None, "warmup_lr": 1e-6,
    "warmup_steps": -1, "color_jitter": 0.4, "train_interpolation": "bicubic", "num_workers": 10, "start_epoch": 0,
    "data_path": "/imagenet", "model_key": "model|module", "model_prefix": "",
}  # fmt: skip
CYCLICAL: dict[str, Cfg] = {
    name: {
        **BEIT, "target_layers": str(list(range(depth - 6, depth))), "layer_results": "end", "l1_beta": 2.0, "l2_loss": False,
        "loss_scale": -1, "mask_dropout_prob": -1.0, "var_w0": 0.0, "var_w1": 0.0, "post_target_layer_norm": True,
        "post_target_instance_norm": False, "target_batch_norm": False, "target_instance_norm": False,
        "no_target_layer_norm_last": False, "ema_decay_init": 0.999, "ema_decay": decay, "ema_start_at": 0,
        "num_mask_patches": 120, "max_mask_patches_per_block": 196, "min_mask_patches_per_block": 16, "batch_size": batch,
        "world_size": world, "lr": lr, "warmup_epochs": warmup, "epochs": 800, "clip_grad": 3.0, "drop_path": drop_path,
        "attn_drop_rate": attention, "layer_scale_init_value": scale, "weight_decay": 0.05, "min_lr": 1e-5,
        "imagenet_default_mean_and_std": True, "tri_phase_schedule": None, "ema_annealing_till_end": False,
        "seed_model": "/first_half/checkpoint-799.pth" if "second" in name else None,
    }
    for name, depth, decay, batch, world, lr, warmup, drop_path, attention, scale in (
        ("image_base", 12, 0.9998, 128, 16, 2e-3, 10, 0.25, 0.05, 1e-4),
        ("image_large", 24, 0.9998, 64, 64, 1e-3, 80, 0.2, 0.15, 1e-5),
        ("image_large_second_half", 24, 0.9999, 64, 64, 1e-3, 40, 0.2, 0.15, 1e-5),
    )
}  # fmt: skip
CLASSES: Cfg = {
    **BEIT, "batch_size": 128, "epochs": 100, "update_freq": 1, "world_size": 8, "drop": 0.0, "attn_drop_rate": 0.0,
    "drop_path": 0.2, "layer_scale_init_value": 0.1, "clip_grad": None, "weight_decay": 0.0, "lr": 4e-3, "layer_decay": 0.65,
    "min_lr": 1e-6, "warmup_epochs": 10, "aa": "rand-m9-mstd0.5-inc1", "smoothing": 0.1, "crop_pct": None, "reprob": 0.25,
    "remode": "pixel", "recount": 1, "mixup": 0.8, "cutmix": 1.0, "cutmix_minmax": None, "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5, "mixup_mode": "batch", "init_scale": 0.001, "use_mean_pooling": True, "target_layer": -1,
    "learn_layer_weights": False, "linear_classifier": False, "imagenet_default_mean_and_std": False, "nb_classes": 1000,
}  # fmt: skip

# ---- fine-tuning -------------------------------------------------------------------------------------------------------


def ctc(
    tokens: int,
    world: int,
    freq: int,
    lr: float,
    updates: int,
    normalize: bool,
    masks: tuple[float, float, float],
    frozen: int,
) -> Cfg:
    """`wav2vec_ctc`; `masks`: of frames, of channels, and the layer drop."""
    return run(
        max_update=updates,
        lr=lr,
        world=world,
        update_freq=freq,
        dataset={"max_tokens": tokens, "valid_subset": "dev_other", "validate_interval": 50},
        optimization={"sentence_avg": True},
        criterion={"_name": "ctc", "zero_infinity": True},
        task={"_name": "audio_finetuning", "data": "/manifests", "normalize": normalize, "labels": "ltr"},
        optimizer=adam("(0.9,0.98)", 1e-8, 0.0),
        lr_scheduler={
            "_name": "tri_stage", "phase_ratio": [0.1, 0.4, 0.5], "final_lr_scale": 0.05, "init_lr_scale": 0.01,
        },
        model={
            "_name": "wav2vec_ctc", "apply_mask": True, "mask_prob": masks[0], "mask_length": 10, "mask_selection": "static",
            "mask_channel_prob": masks[1], "mask_channel_length": 64, "require_same_masks": True, "layerdrop": masks[2],
            "activation_dropout": 0.1, "dropout": 0.0, "attention_dropout": 0.0, "final_dropout": 0.0, "dropout_input": 0.0,
            "feature_grad_mult": 0.0, "freeze_finetune_updates": frozen, "layer_decay": 1, "load_ema": False, "drop_path": 0,
        },
    )  # fmt: skip


CTC: dict[str, Cfg] = {
    "librispeech_10h": ctc(3_200_000, 2, 4, 5e-5, 20_000, False, (0.65, 0.5, 0.05), 10_000),
    "librispeech_v2_10h_large": ctc(1_280_000, 4, 5, 1e-4, 20_000, True, (0.75, 0.25, 0.1), 10_000),
}
IMAGENET_V2: Cfg = run(
    max_update=250_200, lr=1e-3, world=16, dataset={"batch_size": 32, "valid_subset": "val"},
    task={"_name": "mae_image_classification", "data": "/imagenet", "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25},
    model={
        "_name": "mae_image_classification", "num_classes": 1000, "mixup": 0.7, "cutmix": 1.0, "mixup_prob": 0.9,
        "mixup_switch_prob": 0.5, "mixup_mode": "batch", "label_smoothing": 0.1, "drop_path_rate": 0.1, "layer_decay": 0.65,
        "encoder_dropout": 0, "post_mlp_drop": 0, "attention_dropout": 0, "activation_dropout": 0.0, "layerdrop": 0.0,
        "prenet_layerdrop": 0, "prenet_dropout": 0, "use_fc_norm": True, "prediction_mode": "MEAN_POOLING",
        "no_decay_blocks": True, "linear_classifier": False,
    },
    **composite(1e-3, adam([0.9, 0.95], 1e-8, 0.05), cosine(16_000, 1e-6)),
)  # fmt: skip
RTE: Cfg = run(
    max_update=2036, max_epoch=10, lr=2e-5, world=1, dataset={"batch_size": 16, "max_tokens": 4400},
    task={"_name": "sentence_prediction", "data": "/glue/RTE-bin", "num_classes": 2, "max_positions": 512},
    criterion={"_name": "sentence_prediction"},
    optimizer=adam("(0.9,0.98)", 1e-6, 0.1),
    lr_scheduler={
        "_name": "polynomial_decay", "warmup_updates": 122, "power": 1.0, "end_learning_rate": 0.0, "total_num_update": 2036,
        "force_anneal": None,
    },
    model={"_name": "data2vec_text_classification", "pooler_dropout": 0.0, "pooler_activation_fn": "tanh"},
)  # fmt: skip
