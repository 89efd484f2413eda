"""A tiny Megatron-Core GPT, trained for a few steps in one layout or another."""

import dataclasses

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import Float16Module

VOCABULARY, SEQUENCE, GLOBAL_BATCH, MICRO_BATCHES, STEPS = 64, 16, 8, 2, 3


@dataclasses.dataclass
class Case:
    """One layout of the same training."""

    tp: int = 1
    pp: int = 1
    sp: bool = False
    bf16: bool = False
    distributed_optimizer: bool = False
    overlap: bool = False
    recompute: bool = False
    dropout: float = 0.0
    resume_after: int | None = None


def make_model(case):
    dtype = torch.bfloat16 if case.bf16 else torch.float32
    recompute = {}
    if case.recompute:
        recompute = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    config = TransformerConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        tensor_model_parallel_size=case.tp,
        pipeline_model_parallel_size=case.pp,
        sequence_parallel=case.sp,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        add_bias_linear=False,
        add_qkv_bias=True,
        attention_dropout=case.dropout,
        hidden_dropout=case.dropout,
        apply_rope_fusion=True,
        bias_dropout_fusion=True,
        bias_activation_fusion=True,
        params_dtype=dtype,
        bf16=case.bf16,
        pipeline_dtype=dtype,
        **recompute,
    )
    model = GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec(),
        vocab_size=VOCABULARY,
        max_sequence_length=SEQUENCE,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    set_same_weights(model, case.tp, first_layer=model.decoder.layers[0].layer_number - 1)
    return Float16Module(config, model) if case.bf16 else model


def set_same_weights(model, tp, first_layer):
    """Gives every layout the same model: whole tensors from a seed, cut for this process."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    for name, parameter in model.named_parameters():
        name = name.replace("layers.0.", f"layers.{first_layer}.")
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        shape, dimension = list(parameter.shape), getattr(parameter, "partition_dim", -1)
        split = tp > 1 and getattr(parameter, "tensor_model_parallel", False)
        if split:
            shape[dimension] *= tp
        whole = torch.randn(shape, generator=generator) * 0.1 + (1.0 if "norm" in name else 0.0)
        if not split:
            part = whole
        elif "linear_fc1" in name:
            # Gate and up are stacked, each split by itself.
            part = torch.cat([half.chunk(tp, dim=0)[rank] for half in whole.chunk(2, dim=0)])
        else:
            part = whole.chunk(tp, dim=dimension)[rank]
        parameter.data.copy_(part)


def make_training(case):
    model = make_model(case)
    config = model.config
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=case.distributed_optimizer,
        overlap_grad_reduce=case.overlap,
        overlap_param_gather=case.overlap and case.distributed_optimizer,
        average_in_collective=case.overlap,
        grad_reduce_in_fp32=True,
    )
    model = DistributedDataParallel(config, ddp_config, model)
    model.broadcast_params()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=1e-2,
            weight_decay=0.1,
            bf16=case.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=case.distributed_optimizer,
            overlap_param_gather=ddp_config.overlap_param_gather,
            clip_grad=0.5,
        ),
        [model],
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    config.no_sync_func = model.no_sync
    return model, optimizer


def micro_batches(step):
    replicas = parallel_state.get_data_parallel_world_size()
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (GLOBAL_BATCH, SEQUENCE + 1), generator=generator)
    mine = tokens[parallel_state.get_data_parallel_rank() :: replicas]
    return iter(mine.chunk(MICRO_BATCHES))


def forward_step(batches, model):
    tokens = next(batches).cuda(non_blocking=True)
    positions = torch.arange(SEQUENCE, device="cuda").expand(tokens.shape[0], -1)
    output = model(tokens[:, :-1], positions, None, labels=tokens[:, 1:])

    def loss_of(output):
        loss = output.float().mean()
        return loss, {"loss": loss.detach().clone()}

    return output, loss_of


def train_step(model, optimizer, step):
    model.zero_grad_buffer()
    optimizer.zero_grad()
    replicas = parallel_state.get_data_parallel_world_size()
    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=micro_batches(step),
        model=[model],
        num_microbatches=MICRO_BATCHES,
        seq_length=SEQUENCE,
        micro_batch_size=GLOBAL_BATCH // replicas // MICRO_BATCHES,
        forward_only=False,
    )
    _, norm, _ = optimizer.step()
    loss = torch.zeros(1, device=torch.cuda.current_device())
    if reports:
        loss += torch.stack([report["loss"] for report in reports]).mean() / replicas
    dist.all_reduce(loss, group=parallel_state.get_data_parallel_group())
    dist.all_reduce(loss, group=parallel_state.get_pipeline_model_parallel_group())
    return loss.item(), norm


def checkpoint_of(model, optimizer, loading):
    sharded = model.module.sharded_state_dict()
    return {
        "model": sharded,
        "optimizer": optimizer.sharded_state_dict(sharded, is_loading=loading),
    }


def through_a_checkpoint(case, model, optimizer, folder):
    """Returns a model and an optimizer that know of the old ones only what was saved."""
    dist_checkpointing.save(checkpoint_of(model, optimizer, loading=False), folder)
    model, optimizer = make_training(case)
    for parameter in model.parameters():
        parameter.data.zero_()
    state = dist_checkpointing.load(checkpoint_of(model, optimizer, loading=True), folder)
    model.module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return model, optimizer


def run_case(case, folder):
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=case.tp, pipeline_model_parallel_size=case.pp
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1234, force_reset_rng=True)
    model, optimizer = make_training(case)
    steps = []
    for step in range(STEPS):
        if step == case.resume_after:
            model, optimizer = through_a_checkpoint(case, model, optimizer, folder)
        steps.append(train_step(model, optimizer, step))
    keys = sorted(model.module.state_dict())
    types = sorted({type(module).__name__ for module in model.modules()})
    parallel_state.destroy_model_parallel()
    losses, norms = zip(*steps, strict=True)
    return {"losses": losses, "norms": norms, "keys": keys, "types": types}
