"""What a task's model exchanges, without the model, and whether a job's model is that. Pure."""

from dataclasses import dataclass

from cairn.model.schema import Schema


@dataclass(frozen=True)
class Exchanged:
    """The tensors that are shared, the names of those that are private to the site, and the tensors that it keeps.

    `kept` is None where the task keeps nothing from round to round.
    """

    schema: Schema
    private: frozenset[str]
    kept: Schema | None = None

    def why_not(self, job: Schema) -> str:
        """Say in words why the model of a job is not what the task exchanges; empty where it is."""
        if job == self.schema:
            return ""
        kept = frozenset(spec.name for spec in self.kept.tensors) if self.kept else frozenset()
        for spec in job.tensors:
            if spec.name in self.private | kept:
                rule = "keeps" if spec.name in kept else "exchanges"
                return (
                    f"the job's model has {spec.name}, which stays at this site by the task's {rule};"
                    " a job's model holds only what its task exchanges"
                )
        part = "what the task exchanges" if self.private | kept else "the task's model"
        return f"{part} is not the job's: {job.difference(self.schema)}"
