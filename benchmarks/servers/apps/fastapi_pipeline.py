"""FastAPI around `transformers.pipeline`, as tutorials show it.

The route is a plain function: FastAPI's documentation advises that for work that blocks, and runs it in its threads.
"""

from __future__ import annotations

import os

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

app = FastAPI()
classifier = pipeline("text-classification", model=os.environ["MODEL"], device=-1, truncation=True)


class Request(BaseModel):
    text: str


@app.post("/predict")
def predict(request: Request) -> dict[str, object]:
    best = classifier(request.text)[0]
    return {"label": best["label"], "score": best["score"]}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
