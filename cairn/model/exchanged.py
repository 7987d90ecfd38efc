"""What a task's model exchanges, without the model, and whether a job's model is that. Pure."""

from dataclasses import dataclass

from cairn.model.schema import Schema


@dataclass(frozen=True)
class Exchanged:
    """The tensors that are shared, the names of those that are private to the site, and the tensors that it keeps.

    `kept` is None where the task keeps nothing from round to round. `trained` names the shared ones that have a
    gradient: a job of gradients consists of them alone. `gives_weights`, `gives_gradients` and `gives_statistics` say
    which of its functions the task has.
    """

    schema: Schema
    private: frozenset[str]
    kept: Schema | None = None
    trained: frozenset[str] = frozenset()
    gives_weights: bool = True
    gives_gradients: bool = False
    gives_statistics: bool = False

    def schema_of(self, *, gradients: bool) -> Schema:
        """The model of a job of gradients, or of weights."""
        if not gradients:
            return self.schema
        return Schema(tuple(spec for spec in self.schema.tensors if spec.name in self.trained))

    def why_not(self, job: Schema, *, gradients: bool = False) -> str:
        """Say in words why the model of a job, of gradients or of weights, is not the task's; empty where it is."""
        ours = self.schema_of(gradients=gradients)
        if job == ours:
            return ""
        shared = frozenset(spec.name for spec in self.schema.tensors)
        kept = frozenset(spec.name for spec in self.kept.tensors) if self.kept else frozenset()
        for spec in job.tensors:
            if gradients and spec.name in shared - self.trained:
                return (
                    f"the job's model has {spec.name}, which has no gradient in the task's model; the model of a job"
                    " of gradients holds only parameters that are trained"
                )
            if spec.name in self.private | kept:
                rule = "keeps" if spec.name in kept else "exchanges"
                return (
                    f"the job's model has {spec.name}, which stays at this site by the task's {rule};"
                    " a job's model holds only what its task exchanges"
                )
        is_part = self.private | kept or ours != self.schema
        part = "what the task exchanges" if is_part else "the task's model"
        return f"{part} is not the job's: {job.difference(ours)}"

    def why_not_asked(self, content: str) -> str:
        """Say in words why the task cannot give the content that a job asks for; empty where it can."""
        given, function = {
            "weights": (self.gives_weights, "train"),
            "gradients": (self.gives_gradients, "gradients"),
            "statistics": (self.gives_statistics, "columns"),
        }[content]
        if given:
            return ""
        return (
            f"the job asks for {content} and the task has no {function} function;"
            f" pass one: cairn.Task(..., {function}={function})"
        )
