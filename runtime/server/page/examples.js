// Constraints to begin with, each with a question that suits it.

const person = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 40 },
    born: { type: "integer", minimum: 1000, maximum: 2100 },
    occupation: { enum: ["mathematician", "physicist", "writer", "engineer"] },
  },
  required: ["name", "born", "occupation"],
  additionalProperties: false,
};

const review = {
  type: "object",
  properties: {
    sentiment: { enum: ["positive", "neutral", "negative"] },
    score: { type: "integer", minimum: 1, maximum: 5 },
    topics: { type: "array", items: { enum: ["service", "food", "price"] }, minItems: 1, maxItems: 3 },
  },
  required: ["sentiment", "score", "topics"],
  additionalProperties: false,
};

export const EXAMPLES = [
  {
    name: "person",
    kind: "json",
    shape: JSON.stringify(person, null, 2),
    question: "Who was Ada Lovelace? Answer as JSON.",
  },
  {
    name: "review",
    kind: "json",
    shape: JSON.stringify(review, null, 2),
    question: "Rate this review: “The soup was cold, but the waiter could not have been kinder.”",
  },
  {
    name: "date",
    kind: "regex",
    shape: "(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    question: "On which day did people first walk on the Moon?",
  },
  {
    name: "choices",
    kind: "choice",
    shape: "yes\nno\nit depends",
    question: "Is a tomato a fruit?",
  },
];
