"""Source files -> documents -> tokens -> ArrayRecord shards -> windows -> packed rows -> the batch of a step.

`corpus.prepare_if_needed(data, folder)` gives the two splits and the tokenizer, `pipeline.Pipeline` the batch of any
step, `pipeline.validation_batches` the validation split, `tokenizer_export.to_hf` the Hugging Face files.
Nothing is imported here: `config` alone must stay light.
"""
