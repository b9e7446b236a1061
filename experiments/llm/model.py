"""Llama-style language models from transformers, with random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.core.errors import ConfigError
from experiments.core.sharding import Layout


class LanguageModel(nn.Module):
    """`LlamaForCausalLM` whose forward pass gives each target's negative log-probability.

    Args:
        vocab_size: V, tokens.
        max_length: longest sequence.
        dim, layers, heads, kv_heads, ffn_dim: D, blocks, attention heads, key-value heads, width of the SwiGLU layers.
        tie_embeddings: one matrix for input and output tokens.
        init_std: standard deviation of all initial matrices.
        rope_theta: base of the rotary positions.
        attention: "sdpa", or another implementation of transformers.
        checkpointing: recompute activations in the backward pass.
        compile: `torch.compile` the forward pass with its loss.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        dim: int,
        layers: int,
        heads: int,
        ffn_dim: int,
        kv_heads: int | None = None,
        tie_embeddings: bool = True,
        init_std: float = 0.02,
        rope_theta: float = 10_000.0,
        attention: str = "sdpa",
        checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        sizes = {
            "vocab_size": vocab_size, "max_length": max_length, "dim": dim, "layers": layers, "heads": heads,
            "ffn_dim": ffn_dim, "kv_heads": kv_heads,
        }  # fmt: skip
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"model.{name} must be a whole number of at least 1, got {value!r}")
        if dim % (2 * heads) or heads % kv_heads:
            raise ConfigError(
                f"model.dim must be a multiple of 2 * heads, and heads of kv_heads, got {dim=}, {heads=}, {kv_heads=}"
            )
        if not init_std > 0.0:
            raise ConfigError(f"model.init_std must be above 0, got {init_std}")
        if attention not in ("sdpa", "eager", "flash_attention_2", "flex_attention"):
            raise ConfigError(
                f"model.attention must be sdpa, eager, flash_attention_2 or flex_attention, got {attention!r}"
            )
        config = LlamaConfig(
            vocab_size=vocab_size,
            max_position_embeddings=max_length,
            hidden_size=dim,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=ffn_dim,
            tie_word_embeddings=tie_embeddings,
            initializer_range=init_std,
            rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
            attn_implementation=attention,  # type: ignore[call-arg]  # PreTrainedConfig's, by keyword
            use_cache=False,
            # The defaults are token numbers of Meta's tokenizer.
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        self.vocab_size, self.max_length = vocab_size, max_length
        self.llama = LlamaForCausalLM(config)
        if checkpointing:
            self.llama.activation_checkpointing_enable({"use_reentrant": False})
        if compile:
            self.compile()

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log-probabilities of targets.

        Args:
            inputs: (B, T) int64.
            targets: (B, T) int64; -100 is not counted and gives 0.

        Returns:
            (B, T) float32, in nats.
        """
        logits = self.llama(input_ids=inputs, use_cache=False).logits  # (B, T, V)
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return nats.view_as(targets)

    def layout(self) -> Layout:
        # The root is what `generate` calls too.
        tied = self.llama.config.tie_word_embeddings
        tokens = [] if tied else [self.llama.get_input_embeddings(), self.llama.get_output_embeddings()]
        return Layout(root=self.llama, blocks=list(self.llama.model.layers), units=tokens)

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without the input and output token matrices."""
        tokens = {id(self.llama.get_input_embeddings().weight), id(self.llama.get_output_embeddings().weight)}
        return sum(p.numel() for p in self.parameters() if id(p) not in tokens)

    def flops_per_token(self, length: int) -> float:
        """Forward and backward floating-point operations of a token: 6 a weight and 12 D T a layer for attention (PaLM,
        arXiv:2204.02311, appendix B)."""
        config = self.llama.config
        weights = self.non_embedding_parameters + self.llama.get_output_embeddings().weight.numel()
        return float(6 * weights + 12 * config.num_hidden_layers * config.hidden_size * length)

    @torch.no_grad()
    def continue_text(self, prompt: Tensor, tokens: int, end: int, temperature: float, seed: int = 0) -> Tensor:
        """Continue a prompt.

        Args:
            prompt: (T,) int64.
            tokens: most tokens to add.
            end: the token at which to stop.
            temperature: 0 for the most probable token each time; else the distribution's temperature.
            seed: of the sampling; the global generators stay as they are.

        Returns:
            (N,) int64 the tokens added, without `end`.
        """
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
        )
        devices = [prompt.device] if prompt.is_cuda else []
        was_training = self.training
        self.eval()
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            found: Tensor = self.llama.generate(  # type: ignore[misc]  # transformers types its self as a protocol
                prompt[None],
                attention_mask=torch.ones_like(prompt[None]),
                max_new_tokens=tokens,
                eos_token_id=end,
                pad_token_id=end,
                use_cache=True,
                # A sharded model is gathered by all processes, so none may stop before the others.
                synced_gpus=isinstance(self.llama, FSDPModule),
                **sampling,
            )[0, len(prompt) :]
        self.train(was_training)
        return found[found != end]
