async function render({ model, el }) {
  const root = createRoot(el, model, 'Frames')
  const image = await loadImage(model.get('sheet'))
  const [, context] = canvas(root, model.get('width'), model.get('height'), model.get('label'))
  player(root, model)
  root.listen(['index'], () =>
    context.drawImage(
      image,
      ...frameRect(model, model.get('index')),
      0,
      0,
      model.get('width'),
      model.get('height'),
    ),
  )
  return root.end
}

export default { render }
