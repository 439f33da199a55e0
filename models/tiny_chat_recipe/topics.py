"""All topics in one tuple."""

from models.tiny_chat_recipe.country_topics import COUNTRY_TOPICS
from models.tiny_chat_recipe.number_topics import NUMBER_TOPICS
from models.tiny_chat_recipe.talk_topics import TALK_TOPICS
from models.tiny_chat_recipe.topic import Topic
from models.tiny_chat_recipe.word_topics import WORD_TOPICS

TOPICS: tuple[Topic, ...] = (*COUNTRY_TOPICS, *NUMBER_TOPICS, *WORD_TOPICS, *TALK_TOPICS)
