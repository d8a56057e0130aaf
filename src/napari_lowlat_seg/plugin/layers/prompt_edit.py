"""What the user changes in the prompt layers, kept until it is its turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.volume import Plane


@dataclass(frozen=True)
class PromptEdit:
    """One edit of the prompt layers, to be called when it is its turn.

    While it waits, the prompts may become others: an accept before it begins another object, an undo takes
    back a click. So it is kept as what it adds and removes.

    Attributes
    ----------
    before, after
        The prompts that the layers showed; a plane without any may be missing or empty.
    take
        Called with the edit when it is called.
    """

    before: Mapping[Plane, Sequence[Prompt]]
    after: Mapping[Plane, Sequence[Prompt]]
    take: Callable[[PromptEdit], object]

    def __call__(self) -> None:
        """It is its turn."""
        self.take(self)

    def on(self, now: Mapping[Plane, Sequence[Prompt]]) -> dict[Plane, tuple[Prompt, ...]]:
        """These prompts with the edit done to them; a plane that has lost its last one is empty."""
        changed = {plane: tuple(prompts) for plane, prompts in now.items()}
        for plane in dict.fromkeys((*self.before, *self.after)):
            old, new = tuple(self.before.get(plane, ())), tuple(self.after.get(plane, ()))
            if old == new:
                continue
            there = changed.get(plane, ())
            changed[plane] = new if there == old else _edited(there, old, new)
        return changed


def _edited(now: Sequence[Prompt], old: Sequence[Prompt], new: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """`now` without what `old` has and `new` has not, and behind it what only `new` has."""
    return (*_without(now, _without(old, new)), *_without(new, old))


def _without(prompts: Sequence[Prompt], others: Sequence[Prompt]) -> list[Prompt]:
    """The prompts less the others, each as often as it is there."""
    rest = list(prompts)
    for one in others:
        if one in rest:
            rest.remove(one)
    return rest
