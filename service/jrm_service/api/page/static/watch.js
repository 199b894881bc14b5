export const start = () => ({ show() {} });
