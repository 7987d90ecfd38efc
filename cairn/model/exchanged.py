"""What a task's model exchanges, without the model, and whether a job's model is that. Pure."""

from dataclasses import dataclass

from cairn.model.schema import Schema


@dataclass(frozen=True)
class Exchanged:
    """The tensors that are shared, and the names of those that are private to the site."""

    schema: Schema
    private: frozenset[str]

    def why_not(self, job: Schema) -> str:
        """Say in words why the model of a job is not what the task exchanges; empty where it is."""
        if job == self.schema:
            return ""
        for spec in job.tensors:
            if spec.name in self.private:
                return (
                    f"the job's model has {spec.name}, which stays at this site by the task's exchanges;"
                    " a job's model holds only what its task exchanges"
                )
        part = "what the task exchanges" if self.private else "the task's model"
        return f"{part} is not the job's: {job.difference(self.schema)}"
