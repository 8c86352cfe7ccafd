"""The reference systems' own versions of a case: a model with what is trained, and the loss of one forward.

pyreft 0.1.0's trainer does not run with transformers 4.49; what it does in a step is a forward of its ReftModel and a backward, as here.
Each package is imported by the methods that need it: what is imported counts in the peak memory.
"""
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

KINDS = {"f32": torch.float32, "bf16": torch.bfloat16}
DTYPE = "torch_dtype" if transformers.__version__.startswith("4.") else "dtype"
LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Rival:
    """A model with what is trained of it: `loss` of a batch, `parameters` for an optimizer."""

    def __init__(self, case, model_path):
        self.case = case
        options = {DTYPE: KINDS[case["kind"]], "attn_implementation": "sdpa"}
        if model_path.endswith(".json"):
            with torch.device(case["device"]):
                self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path), **options)
        else:
            self.model = AutoModelForCausalLM.from_pretrained(model_path, **options).to(case["device"])

    def parameters(self):
        return [p for p in self.model.parameters() if p.requires_grad]

    def loss(self, ids, mask, labels):
        return self.model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def generate(self, ids, mask, **options):
        return self.model.generate(input_ids=ids, attention_mask=mask, **options)


class Floor(Rival):
    """The frozen model alone: gradient to the embeddings, logits at labels only."""

    def __init__(self, case, model_path):
        super().__init__(case, model_path)
        self.model.requires_grad_(False)

    def loss(self, ids, mask, labels):
        embeddings = self.model.get_input_embeddings()(ids).detach().requires_grad_()
        h = self.model.model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        first = self.case["prompt_length"]
        logits = self.model.lm_head(h[:, first - 1:-1]).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, first:].flatten())


class Full(Rival):
    """Every weight is trained."""


class Loreft(Rival):
    """pyreft's LoReFT, one intervention per layer for all positions."""

    def __init__(self, case, model_path):
        import pyreft

        super().__init__(case, model_path)
        config = self.model.config
        layers = range(config.num_hidden_layers) if case["layers"] is None else case["layers"]
        self.n = len(layers)
        represent = lambda layer: {
            "layer": layer, "component": "block_output", "low_rank_dimension": case["rank"],
            "intervention": pyreft.LoreftIntervention(
                embed_dim=config.hidden_size, low_rank_dimension=case["rank"], dtype=KINDS[case["kind"]])}
        representations = [represent(layer) for layer in layers]
        self.reft = pyreft.get_reft_model(self.model, pyreft.ReftConfig(representations=representations))
        self.reft.set_device(self.model.device)

    def parameters(self):
        return [p for p in self.reft.get_trainable_parameters() if p.requires_grad]

    def locations(self, rows):
        first, last, length = self.case["first"], self.case["last"], self.case["prompt_length"]
        positions = [*range(first), *range(length - last, length)]
        return {"sources->base": (None, [[positions] * rows] * self.n)}

    def loss(self, ids, mask, labels):
        base = {"input_ids": ids, "attention_mask": mask}
        return self.reft(base, unit_locations=self.locations(len(ids)), labels=labels)[1].loss

    def generate(self, ids, mask, **options):
        base = {"input_ids": ids, "attention_mask": mask}
        locations = self.locations(len(ids))
        return self.reft.generate(base, unit_locations=locations, intervene_on_prompt=True, **options)[1]


class Peft(Rival):
    """A method of PEFT, by its configuration."""

    def __init__(self, case, model_path):
        import peft

        super().__init__(case, model_path)
        self.model = peft.get_peft_model(self.model, self.config(peft))


class Lora(Peft):
    def config(self, peft):
        rank = self.case["rank"]
        return peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank,
                               target_modules=self.case["target_modules"] or LORA_LAYERS)


class Prefix(Peft):
    def config(self, peft):
        return peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.case["n_virtual_tokens"])


class Prompt(Peft):
    def config(self, peft):
        return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.case["n_virtual_tokens"])


METHODS = {"floor": Floor, "full": Full, "loreft": Loreft, "lora": Lora, "prefix": Prefix, "prompt": Prompt}
