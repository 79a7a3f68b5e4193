"""Semantic IDs as a knowledge graph: an item, a level, the prefix of codes that the item has there.

RecBole reads graphs from files, before it splits; codes are learned from the training split, after it. So the data set
is read as if there were no graph, and gets RecBole's structures for one once the codes are known.
"""

import numpy as np
import torch
from recbole.data.dataset import KnowledgeBasedDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from ..model.catalogue import SemanticIds
from .code_fields import number_tokens, prefixes

USER_ITEM = "[UI-Relation]"
"""RecBole's relation of users and items, the last one."""
REVERSED = "_r"
"""What RecBole adds to the name of a relation that is read backwards."""


class CodeGraphDataset(KnowledgeBasedDataset):
    """RecBole's `KnowledgeBasedDataset` without `.kg` and `.link`: `attach_graph` makes the graph from semantic IDs.

    All items are entities, by their ids; after them come the prefixes of codes that items have in common.
    """

    def _load_data(self, token: str, dataset_path: str) -> None:
        super(KnowledgeBasedDataset, self)._load_data(token, dataset_path)
        self.kg_feat, self.item2entity, self.entity2item = None, {}, {}

    def _data_filtering(self) -> None:
        super(KnowledgeBasedDataset, self)._data_filtering()

    def _init_alias(self) -> None:
        super(KnowledgeBasedDataset, self)._init_alias()
        self._rest_fields = self._rest_fields[self._rest_fields != self.entity_field]

    def _remap_ID_all(self) -> None:
        super(KnowledgeBasedDataset, self)._remap_ID_all()

    def __str__(self) -> str:
        known = super(KnowledgeBasedDataset, self).__str__()
        return known if self.kg_feat is None else KnowledgeBasedDataset.__str__(self)

    def attach_graph(self, ids: SemanticIds, levels: int | None = None) -> None:
        """Make the graph of the prefixes that `code_fields.prefixes` finds, a relation for each of them."""
        items = [str(token) for token in self.field2id_token[self.iid_field]]
        entities, relations, triples = list(items), ["[PAD]"], []
        for prefix in prefixes(ids, levels):
            heads = np.flatnonzero(prefix.ids.numpy())
            tails = len(entities) - 1 + prefix.ids.numpy()[heads]
            triples.append(np.stack([heads, np.full(len(heads), len(relations)), tails]))
            relations.append(prefix.name)
            entities += [f"{prefix.name}:{token}" for token in prefix.tokens[1:]]
        kg = np.concatenate(triples, axis=1)
        if self.kg_reverse_r:
            n_relations = len(relations) - 1
            kg = np.concatenate([kg, np.add(kg[::-1], [[0], [n_relations], [0]])], axis=1)
            relations += [name + REVERSED for name in relations[1:]]
        fields = (self.head_entity_field, self.relation_field, self.tail_entity_field)
        self.kg_feat = Interaction({field: torch.from_numpy(part) for field, part in zip(fields, kg, strict=True)})
        for field in fields:
            self.set_field_property(field, FeatureType.TOKEN, FeatureSource.KG, 1)
        for field in (self.entity_field, self.head_entity_field, self.tail_entity_field):
            number_tokens(self, field, entities)
        number_tokens(self, self.relation_field, [*relations, USER_ITEM])
        self.item2entity = self.entity2item = {token: token for token in items[1:]}
