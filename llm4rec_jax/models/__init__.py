"""Language models, item and user encoders, scoring heads, and the recommender made of them.

Nothing here knows of parameter-efficient methods.
"""
