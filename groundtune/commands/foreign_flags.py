"""What flags of other tools are called here: TRL, LLaMA-Factory, Axolotl, Unsloth, transformers' examples, vLLM."""

from __future__ import annotations

# Their name -> ours, in order of preference: not every command has all of them.
ELSEWHERE = {
    **dict.fromkeys(("lr", "learning_rate_init"), ("learning_rate",)),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), ("num_train_epochs",)),
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "micro_batch_size"),
        ("per_device_train_batch_size", "per_device_eval_batch_size", "embedding_batch_size"),
    ),
    **dict.fromkeys(("eval_batch_size", "val_batch_size"), ("per_device_eval_batch_size",)),
    **dict.fromkeys(("grad_accum", "accumulate_grad_batches", "grad_accum_steps"), ("gradient_accumulation_steps",)),
    **dict.fromkeys(("model", "model_name", "model_path", "model_id"), ("model_name_or_path",)),
    **dict.fromkeys(("base_model", "base_model_name_or_path"), ("model_name_or_path",)),
    **dict.fromkeys(
        ("tokenizer_name", "embedder", "embedding", "embed_model", "retriever_model"), ("embedding_model",)
    ),
    **dict.fromkeys(("lora_rank", "rank", "r", "lora_dim"), ("lora_r",)),
    **dict.fromkeys(("use_lora", "lora", "peft"), ("use_peft",)),
    **dict.fromkeys(("lora_target", "lora_modules", "target_modules"), ("lora_target_modules",)),
    **dict.fromkeys(("qlora", "load_4bit", "use_4bit", "quantization_bit"), ("load_in_4bit",)),
    **dict.fromkeys(
        ("max_length", "max_seq_len", "seq_len", "cutoff_len", "sequence_len", "model_max_length", "max_model_len"),
        ("max_seq_length",),
    ),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_new_token"), ("max_new_tokens",)),
    **dict.fromkeys(
        ("data", "data_path", "dataset", "dataset_name", "train_data", "train_path"), ("train_file", "eval_file")
    ),
    **dict.fromkeys(
        ("eval_data", "eval_dataset", "validation_file", "val_file", "dev_file", "test_data"), ("eval_file",)
    ),
    **dict.fromkeys(("documents", "docs", "corpus", "knowledge_base", "documents_file"), ("full_dataset_file_path",)),
    **dict.fromkeys(("k", "top_k", "topk", "n_docs", "num_passages"), ("eval_num_to_retrieve",)),
    **dict.fromkeys(("out", "out_dir", "save_dir", "save_path"), ("output_dir", "output")),
    **dict.fromkeys(("resume", "resume_from"), ("resume_from_checkpoint",)),
    **dict.fromkeys(("flash_attn", "use_flash_attn", "flash_attention"), ("use_flash_attention",)),
    **dict.fromkeys(("system_prompt", "system"), ("instruction",)),
    **dict.fromkeys(("api_base", "base_url", "server", "endpoint"), ("generator",)),
    **dict.fromkeys(("log_to", "logger", "wandb"), ("report_to",)),
    **dict.fromkeys(("max_samples", "max_train_rows", "num_samples"), ("max_train_samples", "eval_max_samples")),
}
# Flags of other tools that are not needed here, and why.
NOT_HERE = {
    **dict.fromkeys(
        ("device", "device_map", "gpu", "gpus", "num_gpus", "n_gpu"),
        "devices are found by themselves; CUDA_VISIBLE_DEVICES chooses GPUs, and torchrun starts several processes",
    ),
    **dict.fromkeys(
        ("temperature", "top_p", "do_sample", "num_beams"),
        "answers are greedy, so that the same question gets the same answer",
    ),
    **dict.fromkeys(("template", "chat_template", "prompt_template"), "the model's own chat template is used"),
    **dict.fromkeys(
        ("packing", "sample_packing", "group_by_length"), "rows are packed by themselves where that is exact"
    ),
    **dict.fromkeys(
        ("stage", "finetuning_type"), "the command names the method, and --use_peft true trains a LoRA adapter"
    ),
}
