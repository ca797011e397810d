"""The released command lines: every flag with its default in each script, and the command lines of the README.

Read from the argument parsers and the README of the release. ``...`` stands for a script that has no such flag.
One default is ours: chat's ``--version``, where the release names a model that its README does not offer.
"""

from __future__ import annotations

from typing import Any

_BASE, _TOWER = "liuhaotian/llava-llama-2-13b-chat-lightning-preview", "openai/clip-vit-large-patch14"

# flag: (train_ds.py, chat.py, merge_lora_weights_and_save_hf_model.py)
DEFAULTS: dict[str, tuple[Any, Any, Any]] = {
    "--local_rank": (0, ..., ...),
    "--version": (_BASE, "maverickrzw/PixelLM-13B/hf_model", _BASE),
    "--vis_save_path": ("./vis_output", "./vis_output", "./vis_output"),
    "--precision": ("bf16", "bf16", "bf16"),
    "--image_size": (1024, 1024, 1024),
    "--model_max_length": (512, 512, 512),
    "--lora_r": (8, 8, 8),
    "--vision-tower": (_TOWER, _TOWER, _TOWER),
    "--load_in_8bit": (False, False, ...),
    "--load_in_4bit": (False, False, ...),
    "--dataset": ("sem_seg||refer_seg||vqa||reason_seg", ..., ...),
    "--sample_rates": ("9,3,3,1", ..., ...),
    "--sem_seg_data": ("ade20k||cocostuff||pascal_part||paco_lvis||mapillary", ..., ...),
    "--refer_seg_data": ("refclef||refcoco||refcoco+||refcocog", ..., ...),
    "--vqa_data": ("llava_instruct_150k", ..., ...),
    "--reason_seg_data": ("ReasonSeg|train", ..., ...),
    "--val_dataset": ("ReasonSeg|val", ..., ...),
    "--dataset_dir": ("./dataset", ..., ...),
    "--log_base_dir": ("./runs", ..., ...),
    "--exp_name": ("pixellm", ..., ...),
    "--epochs": (10, ..., ...),
    "--steps_per_epoch": (500, ..., ...),
    "--batch_size": (2, ..., ...),
    "--grad_accumulation_steps": (10, ..., ...),
    "--val_batch_size": (1, ..., ...),
    "--workers": (4, ..., ...),
    "--lr": (0.0003, ..., ...),
    "--ce_loss_weight": (1.0, ..., ...),
    "--dice_loss_weight": (0.5, ..., ...),
    "--bce_loss_weight": (2.0, ..., ...),
    "--lora_alpha": (16, ..., 16),
    "--lora_dropout": (0.05, ..., 0.05),
    "--lora_target_modules": ("q_proj,v_proj", ..., "q_proj,v_proj"),
    "--explanatory": (0.1, ..., ...),
    "--beta1": (0.9, ..., ...),
    "--beta2": (0.95, ..., ...),
    "--num_classes_per_sample": (3, ..., ...),
    "--exclude_val": (False, ..., ...),
    "--no_eval": (False, ..., ...),
    "--eval_only": (False, ..., ...),
    "--vision_pretrained": ("PATH_TO_SAM_ViT-H", ..., "PATH_TO_SAM_ViT-H"),
    "--out_dim": (256, ..., 256),
    "--resume": ("", ..., ...),
    "--print_freq": (1, ..., ...),
    "--start_epoch": (0, ..., ...),
    "--gradient_checkpointing": (True, ..., ...),
    "--train_mask_decoder": (True, ..., True),
    "--use_mm_start_end": (True, True, True),
    "--auto_resume": (True, ..., ...),
    "--seg_token_num": (1, 1, 1),
    "--num_classes_per_question": (1, ..., ...),
    "--pad_train_clip_images": (False, False, False),
    "--masks_process_with_clip": (False, ..., ...),
    "--preprocessor_config": ("", "", ""),
    "--resize_vision_tower": (False, False, False),
    "--resize_vision_tower_size": (224, 224, 224),
    "--vision_tower_for_mask": (False, False, False),
    "--weight": ("", ..., ""),
    "--use_expand_question_list": (False, ..., ...),
    "--separate_mm_projector": (False, False, False),
    "--image_feature_scale_num": (1, 1, 1),
    "--conv_type": ("llava_v1", "llava_v1", "llava_v1"),
    "--local-rank": (..., 0, 0),
    "--save_path": (..., ..., "./pixellm_model"),
}
CHOICES = {"--precision": ("fp32", "bf16", "fp16"), "--conv_type": ("llava_v1", "llava_llama_2")}

# As the README has them; "\\" ends a line that goes on.
TRAIN_LINE = r"""
deepspeed --master_port=24999 train_ds.py --version="PATH_TO_LLaVA" --dataset_dir='./dataset' \
  --dataset="sem_seg||refer_seg||vqa||multi_reason_seg" --sample_rates="2,9,2,4" --exp_name="pixellm-7b" \
  --vision-tower='openai/clip-vit-large-patch14-336' --seg_token_num=3 --num_classes_per_question=3 --batch_size=2 \
  --pad_train_clip_images --preprocessor_config='./configs/preprocessor_448.json' --resize_vision_tower \
  --resize_vision_tower_size=448 --vision_tower_for_mask --use_expand_question_list --image_feature_scale_num=2 \
  --separate_mm_projector
"""
MERGE_LINE = r"""
CUDA_VISIBLE_DEVICES="" python merge_lora_weights_and_save_hf_model.py --version="PATH_TO_LLaVA" \
  --weight="PATH_TO_pytorch_model.bin" --save_path="PATH_TO_SAVED_MODEL"
"""
CHAT_LINE = r"""
python3 ./chat.py --version="./runs/PixeLM-13B/hf_model" --precision='bf16' --seg_token_num=3 --pad_train_clip_images \
  --preprocessor_config='./configs/preprocessor_448.json' --resize_vision_tower --resize_vision_tower_size=448 \
  --vision-tower='openai/clip-vit-large-patch14-336' --vision_tower_for_mask --image_feature_scale_num=2 \
  --separate_mm_projector
"""
